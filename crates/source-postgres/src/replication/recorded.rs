//! What servers of every major said when they were asked who they are, and about a slot: recorded, and played byte for byte.
//!
//! `tests/fixtures/postgres/<major>.txt` has what went over the socket, as hexadecimal digits: `>` is what we said, `<` what the
//! server of that major answered.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::testing::socket;

/// With what each said that it is.
const RECORDED: [(u32, u64, &str, &str); 5] = [
    (14, 7_710_963_683_750_268_903, "0/1943208", include_str!("../../../../tests/fixtures/postgres/14.txt")),
    (15, 7_710_963_710_407_078_930, "0/1741548", include_str!("../../../../tests/fixtures/postgres/15.txt")),
    (16, 7_710_963_733_521_786_812, "0/1721018", include_str!("../../../../tests/fixtures/postgres/16.txt")),
    (17, 7_710_963_755_808_054_251, "0/1737888", include_str!("../../../../tests/fixtures/postgres/17.txt")),
    (18, 7_710_963_785_972_097_223, "0/1765D60", include_str!("../../../../tests/fixtures/postgres/18.txt")),
];

/// What the server said, in order.
fn answers(text: &str) -> Vec<Vec<u8>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("< "))
        .map(|digits| hex::decode(digits).unwrap())
        .collect()
}

/// Waits for one message of ours; the first has no type.
async fn heard(stream: &mut UnixStream, is_first: bool) {
    if !is_first {
        stream.read_u8().await.unwrap();
    }
    let length = stream.read_u32().await.unwrap() as usize - 4;
    stream.read_exact(&mut vec![0; length]).await.unwrap();
}

#[tokio::test]
async fn what_a_server_of_every_major_says_is_understood_however_it_is_cut() {
    for (major, system, position, text) in RECORDED {
        for most in [usize::MAX, 7] {
            let (_dir, listener, options) = socket();
            let recorded = answers(text);
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                for (number, answer) in recorded.iter().enumerate() {
                    heard(&mut stream, number == 0).await;
                    for piece in answer.chunks(most) {
                        stream.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                }
            });
            let mut client = Client::connect(&options).await.unwrap();
            assert_eq!(client.major(), major);
            let identity = client.identify().await.unwrap();
            let position: Lsn = position.parse().unwrap();
            assert_eq!((identity.system_id, identity.position), (SystemId::new(system), position));
            assert_eq!(identity.timeline, Timeline::FIRST);
            let slot = client.slot(&SlotName::new("keepwell").unwrap()).await.unwrap().unwrap();
            assert!(slot.safe_bytes.is_some_and(|bytes| bytes > 64 << 20), "{slot:?}");
            let expected = SlotState {
                kind: "physical".to_owned(),
                active: false,
                restart: Some(Lsn::new(position.get() - 120)),
                wal_status: Some("reserved".to_owned()),
                safe_bytes: slot.safe_bytes,
                lag_bytes: Some(120),
            };
            assert_eq!(slot, expected);
            server.await.unwrap();
        }
    }
}
