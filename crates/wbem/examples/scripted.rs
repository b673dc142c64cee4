//! Serves a few made-up objects over both protocols, to try clients against:
//! `cargo run -p wbem --example scripted -- 5985` (user `alice`, password `correct horse`).

#[expect(clippy::expect_used, reason = "its data is its own")]
#[path = "../tests/protocols/scripted.rs"]
mod scripted;

use std::sync::Arc;

use wbem::server::{Listen, Options, Protocols, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).map_or(Ok(5985), |p| p.parse())?;
    let handler = Arc::new(scripted::Scripted::new());
    let mut server = Server::new(handler, Arc::new(scripted::OneUser), Options::default());
    let bound = server
        .listen(Listen::Tcp {
            addr: ([127, 0, 0, 1], port).into(),
            tls: None,
            protocols: Protocols::BOTH,
        })
        .await?;
    println!("listening on http://{bound}/wsman and /cimom");
    server.run(std::future::pending()).await;
    Ok(())
}
