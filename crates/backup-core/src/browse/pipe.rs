//! From a thread that reads to an async caller that takes.

use std::ops::ControlFlow;

use super::Tree;
use crate::Error;

/// Runs `produce` on a thread of its own and hands what it sends to `consume`, in order, in the calling task. At most
/// `ahead` items wait in between. When the consumer breaks off, the next send breaks. Ends between two items when the work
/// on the repository of `tree` is cancelled, also where nothing has to be fetched any more.
pub(super) async fn pipe<T: Send + 'static, R: Send + 'static>(
    tree: &Tree,
    ahead: usize,
    produce: impl FnOnce(&mut dyn FnMut(T) -> ControlFlow<()>) -> Result<R, Error> + Send + 'static,
    mut consume: impl FnMut(T) -> Result<ControlFlow<()>, Error>,
) -> Result<R, Error> {
    let repository = tree.repository();
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
        consumed = repository.cancel().check().and_then(|()| consume(item));
    }
    drop(receiver);
    let produced = task.await.map_err(|e| Error::Task(e.to_string()))?;
    match repository.unless_cancelled(async { consumed.and(produced) }).await {
        Err(failure) => Err(tree.explained(failure).await),
        done => done,
    }
}
