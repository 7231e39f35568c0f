//! Runs the benchmarks.
//!
//! ```text
//! cargo run --release -p keepwell-benches                 median times
//! cargo run --release -p keepwell-benches -- pack map     those whose name has one of these words
//! cargo run -p keepwell-benches -- --once                 one iteration of each: what it cost, without its time
//! ```

use std::time::Duration;

use anyhow::Result;
use keepwell_benches::{Work, all};

/// So long is each one repeated.
const BUDGET: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let once = words.iter().any(|word| word == "--once");
    words.retain(|word| word != "--once");
    if once {
        println!("{:20} {:>9} {:>12} {:>12}  calls of the store", "benchmark", "items", "bytes", "stored");
    } else {
        println!("{:20} {:>12} {:>12} {:>12}", "benchmark", "median", "MiB/s", "items/s");
    }
    for mut bench in all()? {
        if !words.is_empty() && !words.iter().any(|word| bench.name.contains(word.as_str())) {
            continue;
        }
        let work = if once { bench.once()? } else { bench.median(BUDGET)? };
        println!("{:20} {}", bench.name, if once { counted(&work) } else { measured(&work) });
    }
    Ok(())
}

fn counted(work: &Work) -> String {
    let calls = work.calls.total().calls;
    let calls = if calls == 0 { "-".to_owned() } else { format!("{calls}: {}", work.calls) };
    format!("{:9} {:12} {:12}  {calls}", work.items, work.bytes, work.stored_bytes)
}

fn measured(work: &Work) -> String {
    let seconds = work.took.as_secs_f64();
    let mebibytes = work.bytes as f64 / f64::from(1 << 20);
    let median = format!("{:.3} ms", seconds * 1000.0);
    format!("{median:>12} {:12.1} {:12.0}", mebibytes / seconds, work.items as f64 / seconds)
}
