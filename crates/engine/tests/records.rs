//! Records: durable first, then visible, then told; found by what they say.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod toy;

use engine::{Db, Place};
use toy::{Fault, Toy, open, store};
use uuid::Uuid;

fn toy(id: u128, colour: &str) -> Toy {
    Toy {
        id: Uuid::from_u128(id),
        colour: colour.to_owned(),
    }
}

async fn put(db: &Db<Fault>, toys: &[Toy]) {
    let change = db.change(|draft| {
        toys.iter().for_each(|t| draft.put(t.clone()));
        Ok(())
    });
    change.await.unwrap();
}

fn of(db: &Db<Fault>, colour: &str) -> Vec<u128> {
    let found = db.by::<Toy>("colour", colour);
    found.iter().map(|t| t.id.as_u128()).collect()
}

#[tokio::test]
async fn an_index_finds_what_records_say_now_also_after_a_restart() {
    let store = store();
    let shop = open(&store).await;
    put(&shop.db, &[toy(1, "red"), toy(2, "red"), toy(3, "blue")]).await;
    assert_eq!(of(&shop.db, "red"), [1, 2]);
    let change = shop.db.change(|draft| {
        draft.get_mut::<Toy>(Uuid::from_u128(2))?.colour = "blue".to_owned();
        draft.delete::<Toy>(Uuid::from_u128(1));
        let blue = draft.by::<Toy>("colour", "blue");
        assert_eq!(blue.len(), 2, "a draft sees what was staged in it");
        assert!(draft.by::<Toy>("colour", "red").is_empty());
        Ok(())
    });
    change.await.unwrap();
    for db in [&shop.db, &open(&store).await.db] {
        assert_eq!(of(db, "red"), [] as [u128; 0]);
        assert_eq!(of(db, "blue"), [2, 3]);
        assert_eq!(db.count::<Toy>(), 2);
    }
}

#[tokio::test]
async fn a_change_that_fails_changes_and_tells_nothing() {
    let shop = open(&store()).await;
    let mut feed = shop.db.feed();
    let change = shop.db.change(|draft| {
        draft.put(toy(1, "red"));
        Err::<(), _>(Fault::new("no"))
    });
    assert!(change.await.is_err());
    assert_eq!(shop.db.count::<Toy>(), 0);
    assert!(feed.try_next().unwrap().is_none());
}

#[tokio::test]
async fn the_feed_tells_each_change_once_in_order_with_what_was_and_what_is() {
    let shop = open(&store()).await;
    let mut feed = shop.db.feed();
    put(&shop.db, &[toy(1, "red"), toy(2, "red")]).await;
    let start = feed.cursor();
    put(&shop.db, &[toy(1, "blue")]).await;
    let gone = shop.db.change(|draft| {
        draft.delete::<Toy>(Uuid::from_u128(2));
        draft.delete::<Toy>(Uuid::from_u128(9));
        Ok(())
    });
    gone.await.unwrap();
    let told = |feed: &mut engine::Feed| {
        let mut out = Vec::new();
        while let Some(change) = feed.try_next().unwrap() {
            let colour = |toy: Option<std::sync::Arc<Toy>>| toy.map(|t| t.colour.clone());
            assert_eq!(change.kind, "toy/");
            let (before, after) = (colour(change.before()), colour(change.after()));
            out.push((change.at, change.id.as_u128(), before, after));
        }
        out
    };
    let all = told(&mut feed);
    let (red, blue) = (|| Some("red".to_owned()), || Some("blue".to_owned()));
    let content: Vec<_> = all
        .iter()
        .map(|(_, i, b, a)| (*i, b.clone(), a.clone()))
        .collect();
    assert_eq!(
        content,
        [
            (1, None, red()),
            (2, None, red()),
            (1, red(), blue()),
            (2, red(), None)
        ]
    );
    assert!(all.windows(2).all(|w| w[0].0 < w[1].0), "{all:?}");
    // A cursor goes on where it was taken.
    assert_eq!(told(&mut shop.db.feed_from(start)), all);
    assert_eq!(told(&mut shop.db.feed_from(feed.cursor())), []);
}

#[tokio::test]
async fn whoever_waits_for_a_change_is_woken_and_whoever_is_too_slow_is_told() {
    let shop = open(&store()).await;
    let mut feed = shop.db.feed();
    let waiting = tokio::spawn(async move { (feed.next().await.unwrap().id, feed) });
    put(&shop.db, &[toy(1, "red")]).await;
    let (id, mut feed) = waiting.await.unwrap();
    assert_eq!(id.as_u128(), 1);
    let many: Vec<Toy> = (0..9000).map(|n| toy(n, "red")).collect();
    // A transaction has its limit.
    for some in many.chunks(128).chain(many.chunks(128)) {
        put(&shop.db, some).await;
    }
    let missed = feed.try_next().unwrap_err();
    assert!(missed.oldest > Place::default());
    assert!(
        shop.db
            .feed_from(missed.oldest)
            .try_next()
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_cursor_of_before_a_restart_says_that_changes_were_missed() {
    let store = store();
    let shop = open(&store).await;
    let before = shop.db.feed().cursor();
    put(&shop.db, &[toy(1, "red")]).await;
    let now = shop.db.feed().cursor();
    let next = open(&store).await;
    assert!(next.db.feed_from(before).try_next().is_err());
    // What was seen to its end goes on.
    put(&next.db, &[toy(2, "red")]).await;
    let mut feed = next.db.feed_from(now);
    assert_eq!(feed.try_next().unwrap().unwrap().id.as_u128(), 2);
}
