//! A source that ends when somebody interrupts the command, so that the engine can end its session properly.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use backup_core::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};

use crate::context::Context;
use crate::interrupt::Interrupt;

/// Passes everything through until the interrupt.
pub struct Stoppable {
    inner: Arc<dyn Source>,
    interrupt: Interrupt,
}

impl Stoppable {
    /// Wraps a source; from now on an interrupt ends it instead of the process.
    pub fn new(inner: Arc<dyn Source>, ctx: &Context) -> Arc<Self> {
        ctx.interrupt.ends_by_itself();
        Arc::new(Self { inner, interrupt: ctx.interrupt.clone() })
    }

    fn check(&self) -> Result<(), SourceError> {
        if self.interrupt.is_requested() { Err(SourceError::Other("interrupted".to_owned())) } else { Ok(()) }
    }
}

impl Source for Stoppable {
    fn kind(&self) -> &str {
        self.inner.kind()
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        self.inner.paths()
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        self.inner.preflight()
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        self.inner.walk(&mut |found| match self.check() {
            Ok(()) => visit(found),
            Err(_) => ControlFlow::Break(()),
        })?;
        self.check()
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        self.check()?;
        let opened = self.inner.open(item)?;
        Ok(opened.map(|opened| Opened {
            content: opened.content.map(|inner| {
                Box::new(StoppableContent { inner, interrupt: self.interrupt.clone() }) as Box<dyn Content>
            }),
            ..opened
        }))
    }
}

struct StoppableContent {
    inner: Box<dyn Content>,
    interrupt: Interrupt,
}

impl Content for StoppableContent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        if self.interrupt.is_requested() {
            return Err(io::Error::other("interrupted"));
        }
        self.inner.read(buf)
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        self.inner.changed_while_read()
    }
}
