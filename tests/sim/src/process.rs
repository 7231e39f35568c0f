//! One life of a process: a runtime on a thread of its own, whose time stands still until the simulation lets it pass.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::clock::HostClock;
use crate::quiet::{Quiet, this_thread};

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

enum Order {
    Run(Job),
    Advance(Duration),
    End,
}

/// A running process. After every order it must be given time to [settle](Process::settle).
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    orders: UnboundedSender<Order>,
    thread: JoinHandle<()>,
    clock: HostClock,
}

impl Process {
    /// Starts it. `name` has at most 14 bytes, and no other living process has it.
    pub fn start(name: String, clock: HostClock, quiet: &mut Quiet) -> Self {
        let (orders, mut receiver) = unbounded_channel();
        let (ready, started) = mpsc::channel();
        let pool = format!("{name}+");
        let main = move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let builder = builder.enable_time().start_paused(true).thread_name(pool);
            let runtime = builder.thread_keep_alive(Duration::from_secs(1 << 20)).build();
            let runtime = runtime.expect("a runtime needs nothing that could fail");
            runtime.block_on(async move {
                // As long as a blocking task runs, tokio does not let its paused time jump by itself.
                let (release, held) = mpsc::channel::<()>();
                let holder = tokio::task::spawn_blocking(move || {
                    let _ = ready.send(this_thread());
                    let _ = held.recv();
                });
                while let Some(order) = receiver.recv().await {
                    match order {
                        Order::Run(job) => drop(tokio::spawn(job)),
                        Order::Advance(by) => tokio::time::advance(by).await,
                        Order::End => break,
                    }
                }
                drop(release);
                let _ = holder.await;
            });
        };
        let thread =
            std::thread::Builder::new().name(name.clone()).spawn(main).expect("threads can be started");
        quiet.ignore(started.recv().expect("the process starts"));
        Self { name, orders, thread, clock }
    }

    /// Lets it do something.
    pub fn run(&self, job: impl Future<Output = ()> + Send + 'static) {
        self.order(Order::Run(Box::pin(job)));
    }

    /// Lets time pass for it.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.order(Order::Advance(by));
    }

    /// Waits until it has come to rest.
    pub fn settle(&self, quiet: &mut Quiet) {
        quiet.settle(&self.name);
    }

    /// Ends it. Nothing of it may be at work any more.
    pub fn end(self) {
        self.order(Order::End);
        self.thread.join().expect("the process does not panic");
    }

    fn order(&self, order: Order) {
        assert!(self.orders.send(order).is_ok(), "the process takes orders until it is ended");
    }
}
