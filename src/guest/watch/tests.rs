//! Sharing, release and bounds of watches, at the hub itself.

use std::{fs, path::Path};

use super::{
    mailbox::{Event, Failure, Kind},
    *,
};
use crate::guest::testing;

fn interests(root: &Path, recursive: bool) -> Interests {
    Interests { root: root.to_path_buf(), recursive, entries: false }
}

fn events(subscription: &Subscription) -> Vec<(Kind, String)> {
    subscription.poll().unwrap().into_iter().map(|Event { name, kind, .. }| (kind, name)).collect()
}

/// Kernel watches of this process's instance, as the kernel counts them.
fn kernel_watches(watches: &Watches) -> usize {
    use std::os::fd::AsRawFd as _;
    let guard = watches.lock();
    let Some(hub) = guard.as_ref() else { return 0 };
    let path = format!("/proc/self/fdinfo/{}", hub.kernel.descriptor().as_raw_fd());
    fs::read_to_string(path).unwrap().lines().filter(|line| line.starts_with("inotify ")).count()
}

#[tokio::test]
async fn watchers_share_and_give_back() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("sub")).unwrap();
    let watches = Watches::new(testing::guest(None).users());
    let tree = watches.subscribe(interests(dir.path(), true)).unwrap();
    let sub = watches.subscribe(interests(&dir.path().join("sub"), false)).unwrap();
    assert_eq!(kernel_watches(&watches), 2, "one for each directory, whoever watches it");
    fs::write(dir.path().join("sub/f"), "").unwrap();
    assert_eq!(events(&tree), [(Kind::Create, "sub/f".to_owned())]);
    assert_eq!(events(&sub), [(Kind::Create, "f".to_owned())]);

    let id = tree.id;
    std::mem::forget(tree);
    Watches::forget(&mut watches.lock(), id);
    assert_eq!(kernel_watches(&watches), 1);
    fs::write(dir.path().join("sub/g"), "").unwrap();
    assert_eq!(events(&sub), [(Kind::Create, "g".to_owned())]);
    let id = sub.id;
    std::mem::forget(sub);
    Watches::forget(&mut watches.lock(), id);
    assert!(watches.lock().is_none(), "the instance goes with its last watcher");
}

#[tokio::test]
async fn a_dropped_subscription_releases_everything() {
    let dir = tempfile::tempdir().unwrap();
    let watches = Watches::new(testing::guest(None).users());
    drop(watches.subscribe(interests(dir.path(), false)).unwrap());
    let released = async {
        while watches.lock().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(testing::LIMIT, released).await.unwrap();
    let held = watches.subscribe(interests(dir.path(), false)).unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    assert_eq!(events(&held).len(), 1, "a new instance works like the first");
}

#[tokio::test]
async fn a_failed_start_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let watches = Watches::new(testing::guest(None).users());
    assert!(watches.subscribe(interests(&dir.path().join("none"), true)).is_err());
    assert!(watches.lock().is_none());
}

#[tokio::test]
async fn a_poll_that_lost_events_says_so_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let watches = Watches::new(testing::guest(None).users());
    let watching = watches.subscribe(interests(dir.path(), false)).unwrap();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for number in 0..=limit.trim().parse::<u32>().unwrap() {
        fs::write(dir.path().join(number.to_string()), "").unwrap();
    }
    assert_eq!(watching.poll(), Err(Failure::KernelOverflow));
    assert_eq!(watching.poll(), Err(Failure::KernelOverflow));
    assert!(watches.lock().is_none(), "a failed watcher holds no kernel watch");
}

#[tokio::test]
async fn links_below_the_root_are_entries() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let watches = Watches::new(testing::guest(None).users());
    let watching = watches.subscribe(interests(dir.path(), true)).unwrap();
    std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
    fs::write(other.path().join("f"), "").unwrap();
    assert_eq!(events(&watching), [(Kind::Create, "link".to_owned())]);
}

#[tokio::test]
async fn a_deep_new_tree_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let watches = Watches::new(testing::guest(None).users());
    let watching = watches.subscribe(interests(dir.path(), true)).unwrap();
    fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    fs::write(dir.path().join("a/b/c/f"), "").unwrap();
    let mut told = events(&watching);
    told.sort_by(|a, b| a.1.cmp(&b.1));
    let wanted = ["a", "a/b", "a/b/c", "a/b/c/f"].map(|name| (Kind::Create, name.to_owned()));
    assert_eq!(told, wanted);
}
