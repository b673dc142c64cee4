//! The thread that starts image tools.
//!
//! The kernel kills a tool when the thread that forked it ends. The threads of an asynchronous runtime come and go, so one thread forks
//! all tools and lives as long as the process. It has left the host's network before it starts the first, where it may.

use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::process::Child;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::steps::{Steps, leave_network};

type Order = (
    Command,
    Steps,
    Handle,
    oneshot::Sender<std::io::Result<Child>>,
);

static ORDERS: OnceLock<Option<Sender<Order>>> = OnceLock::new();

/// Starts a program that dies with the service and reaches no network. Dropping the child kills it.
pub(crate) async fn spawn(command: Command, mut steps: Steps) -> std::io::Result<Child> {
    steps.dies_with_parent = true;
    let gone = || std::io::Error::other("the thread that starts image tools is gone");
    let orders = ORDERS.get_or_init(start).as_ref().ok_or_else(gone)?;
    let (answer, started) = oneshot::channel();
    orders
        .send((command, steps, Handle::current(), answer))
        .map_err(|_| gone())?;
    started.await.map_err(|_| gone())?
}

fn start() -> Option<Sender<Order>> {
    let (orders, received) = channel();
    let thread = std::thread::Builder::new()
        .name("image-tools".into())
        .spawn(move || work(&received));
    match thread {
        Ok(_) => Some(orders),
        Err(error) => {
            tracing::error!(%error, "no thread for image tools");
            None
        }
    }
}

fn work(orders: &Receiver<Order>) {
    if let Err(error) = leave_network() {
        tracing::info!(%error, "image tools share the host's network: only root may give them one of their own");
    }
    for (mut command, steps, runtime, answer) in orders {
        steps.before(&mut command);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let _runtime = runtime.enter();
        // A child that nobody waits for any more is dropped, and so killed.
        let _ = answer.send(command.spawn());
    }
}
