//! From a thread that reads to an async caller that takes.

use std::ops::ControlFlow;

use crate::Error;

/// Runs `produce` on a thread of its own and hands what it sends to `consume`, in order, in the calling task. At most
/// `ahead` items wait in between. When the consumer breaks off, the next send breaks.
pub(super) async fn pipe<T: Send + 'static, R: Send + 'static>(
    ahead: usize,
    produce: impl FnOnce(&mut dyn FnMut(T) -> ControlFlow<()>) -> Result<R, Error> + Send + 'static,
    mut consume: impl FnMut(T) -> Result<ControlFlow<()>, Error>,
) -> Result<R, Error> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(ahead);
    let task = tokio::task::spawn_blocking(move || {
        produce(&mut |item| match sender.blocking_send(item) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    });
    let mut consumed = Ok(ControlFlow::Continue(()));
    while let Ok(ControlFlow::Continue(())) = consumed
        && let Some(item) = receiver.recv().await
    {
        consumed = consume(item);
    }
    drop(receiver);
    let produced = task.await.map_err(|e| Error::Task(e.to_string()))?;
    consumed.and(produced)
}
