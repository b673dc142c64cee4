//! What is served to other hosts: moves, and nothing else.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use peer::{Fingerprint, Listener, Serve, Wire};

use super::said::{Answer, Ask};
use super::{Host, arrive, hosts, meet};
use crate::{Fault, Result, Vmms, fault};

/// How long a link may be silent between two questions.
const IDLE: Duration = Duration::from_secs(600);

struct Doors {
    vmms: Weak<Vmms>,
}

/// Listens for other hosts on these addresses, and on no others that it did before.
///
/// # Errors
/// [`crate::Message::ListenFailed`], [`crate::Message::HostKeyUnusable`].
pub async fn listen(vmms: &Arc<Vmms>, addresses: &[SocketAddr]) -> Result<()> {
    let identity = hosts::identity(vmms)?;
    // Those that are open now may be the very same.
    stop_listening(vmms).await;
    let mut listeners = Vec::new();
    for address in addresses {
        let doors = Arc::new(Doors {
            vmms: Arc::downgrade(vmms),
        });
        let listener = Listener::bind(&identity, *address, doors).await;
        listeners.push(listener.map_err(|error| {
            let cause = std::error::Error::source(&error);
            let why = cause.map_or_else(|| error.to_string(), ToString::to_string);
            fault!(ListenFailed, address, why)
        })?);
    }
    vmms.moves.listen(listeners);
    Ok(())
}

/// Listens no longer; links that are open are cut.
pub async fn stop_listening(vmms: &Vmms) {
    vmms.moves.listen(Vec::new());
    // The sockets close with the tasks that have them.
    tokio::task::yield_now().await;
}

/// Where it is listened for other hosts.
pub fn listening(vmms: &Vmms) -> Vec<SocketAddr> {
    vmms.moves.listening()
}

#[async_trait]
impl Serve for Doors {
    fn trusts(&self, who: &Fingerprint) -> bool {
        let vmms = self.vmms.upgrade();
        vmms.is_some_and(|vmms| hosts::with_pin(&vmms, who).is_some())
    }

    fn closed(&self, local: IpAddr) -> Option<String> {
        let service = self.vmms.upgrade()?.migration_service();
        let closed = || format!("{local} lies in none of its migration networks");
        (!service.admits(local)).then(closed)
    }

    async fn serve(&self, mut wire: Wire) {
        loop {
            let ask = match wire.hear::<Ask>(IDLE).await {
                Ok(Some(ask)) => ask,
                Ok(None) => return,
                Err(error) => {
                    tracing::info!(%error, "a link to another host ended");
                    return;
                }
            };
            let Some(vmms) = self.vmms.upgrade() else {
                return;
            };
            // Looked at again with each question: trust may have been taken back.
            let Some(host) = hosts::with_pin(&vmms, &wire.who()) else {
                return;
            };
            if let Ask::Channel { id, way } = &ask {
                match meet::channel(&vmms, &host, *id, way).await {
                    Ok(process) => {
                        drop(vmms);
                        if wire.say(&Answer::Done).await.is_ok() {
                            meet::relay(wire, process).await;
                        }
                        return;
                    }
                    Err(error) => {
                        let refused = Answer::Failed(Box::new(error));
                        let _ = wire.say(&refused).await;
                        continue;
                    }
                }
            }
            let answered = answer(&vmms, &host, &mut wire, ask).await;
            let answer = match answered {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::info!(host = host.name, %error, "what another host asked was not done");
                    Answer::Failed(Box::new(error))
                }
            };
            if let Err(error) = wire.say(&answer).await {
                tracing::info!(host = host.name, %error, "an answer did not reach a host");
                return;
            }
        }
    }
}

async fn answer(vmms: &Arc<Vmms>, host: &Arc<Host>, wire: &mut Wire, ask: Ask) -> Result<Answer> {
    if let Ask::File { id, .. }
    | Ask::Same { id, .. }
    | Ask::Launch { id, .. }
    | Ask::Settle(id)
    | Ask::Arrived(id)
    | Ask::Beat(id)
    | Ask::Grant(id) = &ask
    {
        arrive::arrival(vmms, host, *id)?;
        vmms.moves.heard.from(*id);
    }
    match ask {
        Ask::Look(proposal) => arrive::look(vmms, host, &proposal).await,
        Ask::Prepare(proposal) => arrive::prepare(vmms, host, &proposal).await,
        Ask::File { id, name, from } => arrive::file(vmms, host, wire, (id, &name, from))
            .await
            .map(|()| Answer::Done),
        Ask::Same { id, name, digest } => arrive::same(vmms, host, (id, &name, &digest))
            .await
            .map(|()| Answer::Done),
        Ask::Settle(id) => arrive::settle(vmms, host, id).await.map(|()| Answer::Done),
        Ask::Launch { id, hardware } => meet::launch(vmms, host, id, &hardware).await,
        Ask::Arrived(id) => meet::arrived(vmms, host, id).await.map(|()| Answer::Done),
        Ask::Beat(_) => Ok(Answer::Done),
        // It has taken the link for itself.
        Ask::Channel { .. } => Err(fault!(Internal, "a channel among messages")),
        Ask::Grant(id) => arrive::grant(vmms, host, id).await,
        Ask::Abort { id, keep, why } => {
            arrive::arrival(vmms, host, id)?;
            let why = why.map(|why| super::link::says(&host.name, *why));
            let why = why.unwrap_or_else(|| stopped(host));
            arrive::end(vmms, id, why, keep)
                .await
                .map(|()| Answer::Done)
        }
    }
}

fn stopped(host: &Host) -> Fault {
    fault!(MoveStopped, "a machine", host.name, "its source")
}
