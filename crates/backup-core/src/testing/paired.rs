//! A store that shows whether requests are made at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use keepwell_storage::{Memory, Operation};
use tokio::sync::Barrier;

use super::{Hook, Hooked};

/// Answers the first two requests for data packs, or parts of them, only when both were made.
#[derive(Debug)]
pub(crate) struct Paired {
    asked: AtomicUsize,
    both: Barrier,
}

impl Paired {
    pub fn over(inner: Memory) -> Hooked<Self> {
        Hooked::new(inner, Self { asked: AtomicUsize::new(0), both: Barrier::new(2) })
    }
}

#[async_trait]
impl Hook for Paired {
    async fn before(&self, _: &Memory, operation: Operation, subject: &str) {
        let is_read = matches!(operation, Operation::Get | Operation::GetRange);
        if is_read && subject.starts_with("data/") && self.asked.fetch_add(1, Ordering::SeqCst) < 2 {
            self.both.wait().await;
        }
    }
}
