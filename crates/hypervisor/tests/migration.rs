//! Moves between two QEMUs: exact, told truthfully at every step, and never two that run.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::config::{Acceleration, Controller};
use hypervisor::migration::{
    Address, Channel, Compression, Credentials, Limits, Link, MemoryProgress, MigrationFeatures,
    Multifd, Terms, Tls, Transfer, Unfit,
};
use hypervisor::{
    Error, ErrorKind, Hypervisor, ImageFormat, Launch, Machine, MachineStatus, Migrate, MovePhase,
    confine,
};
use serde_json::json;
use support::guest::records;
use support::moves::{
    Guest, LONG, SLOW, Two, hand_over, phase, plain, receive, send, slow, still_runs, until,
};
use support::{Bench, Running};

#[tokio::test]
async fn a_machine_on_shared_disks_goes_on_writing_where_it_arrives() {
    let two = Two::shared(Guest::Writer).await;
    let destination = two.destination().await;
    assert_eq!(phase(&destination).await, MovePhase::Waiting);
    let found = two.source.hardware().await.unwrap();
    let unfit = found.unfit_for(&destination.hardware().await.unwrap());
    assert!(unfit.is_empty(), "{unfit:?}");
    let address = receive(&destination, two.socket("memory.sock")).await;
    assert_eq!(phase(&destination).await, MovePhase::Receiving);
    send(&two.source, address).await.unwrap();
    let moved = hand_over(&two.source, &destination).await;
    assert!(
        moved.downtime.is_some() && moved.transferred > 0,
        "{moved:?}"
    );
    two.writes_on().await;
    destination.quit(LONG).await.unwrap();
    two.records("sda.base", ImageFormat::Raw).await;
}

#[tokio::test]
async fn a_machine_moves_with_its_layers_over_streams_while_it_writes() {
    let two = Two::layered(Guest::Writer, 2).await;
    let destination = two.destination().await;
    two.mirror(&destination, None).await;
    assert_eq!(phase(&two.source).await, MovePhase::Mirroring);
    assert_eq!(destination.moving().await.unwrap().offered, ["sda"]);
    two.writes_on().await;
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let there = destination
        .receive(plain(Channel::Stream(far.into())), &Terms::default())
        .await
        .unwrap();
    assert_eq!(there, None);
    let transfer = Transfer::new();
    two.source
        .send(
            plain(Channel::Stream(near.into())),
            &Terms::default(),
            &Limits::default(),
            &transfer,
        )
        .await
        .unwrap();
    assert!(transfer.progress().total > 0, "{:?}", transfer.progress());
    hand_over(&two.source, &destination).await;
    let (active, format) = two.active_there();
    two.writes_on().await;
    destination.quit(LONG).await.unwrap();
    let before = records(
        &two.bench
            .contents(&two.bench.path("l2.qcow2"), format)
            .await,
    );
    let after = records(&two.bench.contents(&active, format).await);
    assert!(after > before, "{after} {before}");
}

#[tokio::test]
async fn disks_are_the_same_bytes_at_the_hand_over() {
    let two = Two::layered(Guest::Writer, 2).await;
    let destination = two.destination().await;
    two.mirror(&destination, None).await;
    let address = receive(&destination, two.socket("memory.sock")).await;
    send(&two.source, address).await.unwrap();
    two.source.end_mirrors(LONG).await.unwrap();
    two.source.switch_over(LONG).await.unwrap();
    destination.arrived(LONG).await.unwrap();
    let (active, format) = two.active_there();
    let here = two
        .bench
        .contents(&two.bench.path("l2.qcow2"), format)
        .await;
    assert!(here == two.bench.contents(&active, format).await);
    records(&here);
}

#[tokio::test]
async fn a_sending_is_cancelled_before_it_begins_and_while_it_goes_on() {
    let two = Two::shared(Guest::Writer).await;
    let destination = two.destination().await;
    let address = receive(&destination, two.socket("memory.sock")).await;
    let cancelled = Transfer::new();
    cancelled.cancel();
    let link = || plain(address.clone());
    let terms = Terms::default();
    let refused = two.source.send(link(), &terms, &slow(), &cancelled).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(phase(&two.source).await, MovePhase::None);

    let transfer = Arc::new(Transfer::new());
    let mut progress = transfer.watch();
    let asker = Arc::clone(&transfer);
    let asking = tokio::spawn(async move {
        progress.wait_for(|p| p.transferred > 0).await.unwrap();
        asker.cancel();
    });
    let ended = two.source.send(link(), &terms, &slow(), &transfer).await;
    asking.await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(phase(&two.source).await, MovePhase::None);
    assert_eq!(two.source.status().await.unwrap(), MachineStatus::Running);
    two.writes_on().await;
    assert!(destination.arrived(LONG).await.is_err());
    destination.abandon().await.unwrap();

    // And a later move works, cancelled at its last moment.
    let destination = two.destination().await;
    let address = receive(&destination, two.socket("again.sock")).await;
    send(&two.source, address).await.unwrap();
    assert_eq!(phase(&two.source).await, MovePhase::ReadyToSwitch);
    two.source.abandon().await.unwrap();
    two.source.abandon().await.unwrap();
    until(&two.source, MovePhase::None).await;
    two.writes_on().await;
    destination.abandon().await.unwrap();
    let saved = two.bench.path("state");
    two.source.save_state(&saved).await.unwrap();
}

fn openssl(dir: &Path, args: &str) {
    let done = Command::new("openssl")
        .current_dir(dir)
        .args(args.split(' '))
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Two directories whose sides believe each other's own certificate and no other.
fn certificates(dir: &Path) -> (Tls, Tls) {
    let sides = [("alpha", "client"), ("beta", "server")];
    for (name, role) in sides {
        std::fs::create_dir(dir.join(name)).unwrap();
        openssl(
            &dir.join(name),
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
                 -addext subjectAltName=DNS:{name} -keyout {role}-key.pem -out {role}-cert.pem"
            )
            .replace("  ", " "),
        );
    }
    std::fs::copy(
        dir.join("alpha/client-cert.pem"),
        dir.join("beta/ca-cert.pem"),
    )
    .unwrap();
    std::fs::copy(
        dir.join("beta/server-cert.pem"),
        dir.join("alpha/ca-cert.pem"),
    )
    .unwrap();
    let tls = |name: &str, server: Option<&str>| Tls {
        dir: dir.join(name),
        credentials: Credentials::X509 { authorized: None },
        server_name: server.map(str::to_owned),
    };
    (tls("alpha", Some("beta")), tls("beta", None))
}

fn shared_key(dir: &Path, name: &str, digits: char) -> Tls {
    let dir = dir.join(name);
    std::fs::create_dir(&dir).unwrap();
    let line = format!("mover:{}\n", digits.to_string().repeat(64));
    std::fs::write(dir.join("keys.psk"), line).unwrap();
    Tls {
        dir,
        credentials: Credentials::Psk {
            user: "mover".into(),
        },
        server_name: None,
    }
}

fn anywhere() -> Channel {
    Channel::Address(Address::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    })
}

async fn zstd(two: &Two) -> Terms {
    let features = two.bench.hypervisor.features().await.unwrap();
    let wishes = Terms {
        multifd: Some(Multifd {
            channels: 3,
            compression: Compression::Zstd,
        }),
        bitmaps: false,
    };
    features.migration.agree(&features.migration, &wishes)
}

#[tokio::test]
async fn disks_and_packed_memory_travel_inside_tls_over_several_channels() {
    let two = Two::layered(Guest::Writer, 1).await;
    let (here, there) = certificates(two.bench.dir.path());
    let terms = zstd(&two).await;
    assert!(
        terms
            .multifd
            .is_some_and(|m| m.compression == Compression::Zstd)
    );
    let destination = two.destination().await;
    two.mirror(&destination, Some((here.clone(), there.clone())))
        .await;
    let link = |channel, tls: &Tls| Link {
        channel,
        tls: Some(tls.clone()),
    };
    let address = destination.receive(link(anywhere(), &there), &terms).await;
    let address = Channel::Address(address.unwrap().unwrap());
    let transfer = Transfer::new();
    let sent = two
        .source
        .send(link(address, &here), &terms, &Limits::default(), &transfer)
        .await;
    if sent.is_err() {
        eprintln!(
            "{:?} LOG {}",
            destination.moving().await,
            std::fs::read_to_string(destination.files().log()).unwrap()
        );
    }
    sent.unwrap();
    hand_over(&two.source, &destination).await;
    two.writes_on().await;
    // Nothing of the move is left in what it became: it can be saved, and read over NBD.
    destination.export_active("sda").await.unwrap();
    destination.close_export("sda").await.unwrap();
    destination
        .save_state(&two.bench.path("state"))
        .await
        .unwrap();
    let (active, format) = two.active_there();
    records(&two.bench.contents(&active, format).await);
}

#[tokio::test]
async fn strangers_are_kept_out_and_both_sides_say_why() {
    let two = Two::shared(Guest::Idle).await;
    let right = shared_key(two.bench.dir.path(), "right", 'a');
    let wrong = shared_key(two.bench.dir.path(), "wrong", 'b');
    let destination = two.destination().await;
    let (terms, limits) = (Terms::default(), Limits::default());
    let link = |channel, tls: &Tls| Link {
        channel,
        tls: Some(tls.clone()),
    };
    let address = destination.receive(link(anywhere(), &right), &terms).await;
    let address = address.unwrap().unwrap();
    let channel = || Channel::Address(address.clone());
    let transfer = Transfer::new();
    for stranger in [link(channel(), &wrong), plain(address.clone())] {
        let ended = two.source.send(stranger, &terms, &limits, &transfer).await;
        assert!(matches!(ended, Err(Error::Migration { .. })), "{ended:?}");
        still_runs(&two).await;
        assert_eq!(phase(&destination).await, MovePhase::Receiving);
    }
    let mut missing = right.clone();
    missing.dir = two.bench.path("nothing");
    let refused = two
        .source
        .send(link(channel(), &missing), &terms, &limits, &transfer);
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::Io);
    // Refused strangers cost nothing: the right one is let in.
    two.source
        .send(link(channel(), &right), &terms, &limits, &transfer)
        .await
        .unwrap();
    hand_over(&two.source, &destination).await;
}

#[tokio::test]
async fn a_limit_of_bandwidth_is_kept_and_lifted_while_it_sends() {
    let two = Two::shared(Guest::Hog).await;
    let destination = two.destination().await;
    let address = receive(&destination, two.socket("memory.sock")).await;
    let (terms, transfer) = (Terms::default(), Transfer::new());
    let limits = slow();
    let sending = two.source.send(plain(address), &terms, &limits, &transfer);
    let lifting = async {
        let mut progress = transfer.watch();
        let some = |p: &MemoryProgress| p.elapsed > Duration::from_secs(1);
        let seen = progress.wait_for(some).await.unwrap().clone();
        let most = u128::from(SLOW) * (seen.elapsed.as_millis() + 500) / 1000;
        assert!(u128::from(seen.transferred) <= most, "{seen:?}");
        assert!(seen.total >= 32 << 20, "{seen:?}");
        two.source.limit(&Limits::default()).await.unwrap();
    };
    let (ended, ()) = tokio::join!(sending, lifting);
    ended.unwrap();
    hand_over(&two.source, &destination).await;
}

#[tokio::test]
async fn a_guest_that_changes_memory_faster_than_it_is_sent_is_told_and_slowed_down() {
    let two = Two::shared(Guest::Hog).await;
    let destination = two.destination().await;
    let address = receive(&destination, two.socket("memory.sock")).await;
    let (terms, transfer) = (Terms::default(), Transfer::new());
    let limits = Limits {
        bandwidth: Some(1 << 20),
        downtime: Duration::from_millis(1),
        auto_converge: true,
    };
    let sending = two.source.send(plain(address), &terms, &limits, &transfer);
    let watching = async {
        let mut progress = transfer.watch();
        let slowed = |p: &MemoryProgress| p.throttle_percent.is_some();
        let seen = progress.wait_for(slowed).await.unwrap().clone();
        assert!(
            seen.rounds > 1 && seen.dirty_pages_per_second > 0,
            "{seen:?}"
        );
        let longer = Limits {
            bandwidth: None,
            downtime: Duration::from_secs(2),
            ..limits
        };
        two.source.limit(&longer).await.unwrap();
    };
    // It does not end before it was allowed to.
    tokio::pin!(sending);
    tokio::select! {
        ended = &mut sending => panic!("{ended:?}, {:?}", transfer.progress()),
        () = watching => {}
    }
    sending.await.unwrap();
    let moved = hand_over(&two.source, &destination).await;
    assert!(moved.rounds > 1, "{moved:?}");
}

#[tokio::test]
async fn what_does_not_fit_is_told_before_anything_is_sent() {
    let mut two = Two::shared(Guest::Idle).await;
    two.there.vcpus = 2;
    two.there.memory_mib = 48;
    two.there.cpu_model = Some("qemu64".into());
    two.there.controllers.push(Controller::Scsi(1));
    let features = two.bench.hypervisor.features().await.unwrap();
    let another = features.machine_types.iter().find(|name| {
        let newest = features.machine_gen1.as_ref();
        name.starts_with("pc-i440fx-") && Some(*name) != newest
    });
    two.there.machine_type = another.cloned();
    let launched = two
        .bench
        .hypervisor
        .launch_qemu(&two.there, Launch::Incoming);
    let destination = Running::new(launched.await.unwrap());
    let here = two.source.hardware().await.unwrap();
    assert!(
        !here.cpu_features.is_empty() && here.memory == 32 << 20,
        "{here:?}"
    );
    let unfit = here.unfit_for(&destination.hardware().await.unwrap());
    let has = |wanted: fn(&Unfit) -> bool| assert!(unfit.iter().any(wanted), "{unfit:?}");
    has(|unfit| matches!(unfit, Unfit::CpuFeatures { .. }));
    has(|unfit| matches!(unfit, Unfit::Device { device, .. } if device == "scsi1"));
    has(|unfit| matches!(unfit, Unfit::Differs { what, .. } if what.contains("memory")));
    has(|unfit| matches!(unfit, Unfit::Differs { what, .. } if what.contains("processors")));
    has(|unfit| matches!(unfit, Unfit::OtherMachineType { .. }));

    let mut config = two.bench.config.clone();
    config.acceleration = Acceleration::Tcg;
    let mut other = features.as_ref().clone();
    other.machine_types.clear();
    other.version.major = 6;
    other.migration = MigrationFeatures::default();
    let unfit = Unfit::between(&config, &here.machine_type, &features, &other, true);
    for wanted in ["older", "machine type", "without TLS", "return-path"] {
        let told = |unfit: &Unfit| unfit.to_string().contains(wanted);
        assert!(unfit.iter().any(told), "{wanted}: {unfit:?}");
    }
    let same = Unfit::between(&config, &here.machine_type, &features, &features, true);
    assert!(same.is_empty(), "{same:?}");
    // A processor this host does not have is refused at the start, by name.
    two.there.cpu_model = Some("SapphireRapids-v1".into());
    destination.abandon().await.unwrap();
    let refused = two
        .bench
        .hypervisor
        .launch_qemu(&two.there, Launch::Incoming);
    let error = refused.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Start, "{error}");
}

#[tokio::test]
async fn bitmaps_of_other_tools_are_found_and_go_along() {
    let two = Two::layered(Guest::Idle, 1).await;
    let bitmap = json!({ "node": "l1", "name": "theirs", "persistent": true });
    two.source
        .execute("block-dirty-bitmap-add", bitmap)
        .await
        .unwrap();
    support::hmp(
        &two.source,
        "qemu-io -d /machine/peripheral/drive-sda \"write -P 8 1M 64k\"",
    )
    .await;
    assert_eq!(two.source.disks().await.unwrap()[0].bitmaps, ["theirs"]);
    let destination = two.destination().await;
    two.mirror(&destination, None).await;
    let terms = Terms {
        bitmaps: true,
        ..Terms::default()
    };
    let address = destination
        .receive(plain(two.socket("memory.sock")), &terms)
        .await;
    let link = plain(address.unwrap().unwrap());
    let (limits, transfer) = (Limits::default(), Transfer::new());
    two.source
        .send(link, &terms, &limits, &transfer)
        .await
        .unwrap();
    hand_over(&two.source, &destination).await;
    let disks = destination.disks().await.unwrap();
    assert_eq!(disks[0].bitmaps, ["theirs"]);
}

#[tokio::test]
async fn machines_with_users_of_their_own_move_by_streams_and_inside_tls() {
    let mut bench = Bench::new();
    let user = 2_130_000_000 + std::process::id() % 1_000_000 * 2;
    if let Err(why) = confine::can_change_user(user).await {
        eprintln!("skipped: {why}");
        return;
    }
    bench.config.confinement.sandbox = true;
    bench.config.confinement.user = Some(user);
    bench.config.confinement.journal = Some(bench.path("granted.json"));
    let mut two = Two::with(bench, Guest::Writer).await;
    two.there.confinement.user = Some(user + 1);
    two.there.confinement.journal = Some(two.bench.path("granted-there.json"));
    let two = two.with_layers(1).await;
    let terms = zstd(&two).await;
    let destination = two.destination().await;
    let refused = destination
        .receive(plain(two.socket("memory.sock")), &terms)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    let (here, there) = certificates(two.bench.dir.path());
    two.mirror(&destination, Some((here.clone(), there.clone())))
        .await;
    let link = |channel, tls: &Tls| Link {
        channel,
        tls: Some(tls.clone()),
    };
    let address = destination.receive(link(anywhere(), &there), &terms).await;
    let address = Channel::Address(address.unwrap().unwrap());
    let transfer = Transfer::new();
    two.source
        .send(link(address, &here), &terms, &Limits::default(), &transfer)
        .await
        .unwrap();
    hand_over(&two.source, &destination).await;
    two.writes_on().await;
    destination.quit(LONG).await.unwrap();
    let (active, format) = two.active_there();
    records(&two.bench.contents(&active, format).await);
}
