//! Certificates in time: made once, renewed, reloaded, kept where the new one is wrong.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Mutex};

use super::*;

struct Held(Mutex<Timestamp>);

impl Held {
    fn at(text: &str) -> Arc<Self> {
        Arc::new(Self(Mutex::new(text.parse().unwrap())))
    }

    fn set(&self, text: &str) {
        *self.0.lock().unwrap() = text.parse().unwrap();
    }
}

impl Clock for Held {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

fn shown(keeper: &Keeper) -> Vec<u8> {
    keeper.certificates.shown().end_entity_cert().unwrap().to_vec()
}

fn write(dir: &Path, name: &str) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().to_vec()
}

#[test]
fn the_authority_is_made_once_and_its_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    Authority::open(dir.path(), "firkin.localhost:3000", now).unwrap();
    let first = fs::read(dir.path().join(CERTIFICATE)).unwrap();
    Authority::open(dir.path(), "firkin.localhost:3000", now).unwrap();
    assert_eq!(fs::read(dir.path().join(CERTIFICATE)).unwrap(), first);
    let key = dir.path().join("tls-ca.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    // Near its end it is replaced; a lost key is said, not silently replaced.
    Authority::open(dir.path(), "firkin.localhost:3000", "2035-11-01T00:00:00Z".parse().unwrap()).unwrap();
    assert_ne!(fs::read(dir.path().join(CERTIFICATE)).unwrap(), first);
    fs::remove_file(&key).unwrap();
    let error = Authority::open(dir.path(), "firkin.localhost:3000", now).unwrap_err().to_string();
    assert!(error.contains("tls-ca.key") && error.contains("remove"), "{error}");
}

#[test]
fn a_leaf_is_renewed_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Held::at("2026-01-01T00:00:00Z");
    let authority = Authority::open(dir.path(), "firkin.localhost", clock.now()).unwrap();
    let mut keeper = Keeper::development(authority, clock.clone()).unwrap();
    let first = shown(&keeper);
    clock.set("2026-02-28T00:00:00Z");
    keeper.look();
    assert_eq!(shown(&keeper), first);
    clock.set("2026-03-03T00:00:00Z");
    keeper.look();
    assert_ne!(shown(&keeper), first);
}

#[test]
fn changed_files_are_read_when_they_have_settled_and_wrong_ones_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = write(dir.path(), "first");
    let given = Given::load(&dir.path().join("cert.pem"), &dir.path().join("key.pem")).unwrap();
    let mut keeper = Keeper::given(given, Held::at("2026-01-01T00:00:00Z")).unwrap();
    keeper.look();
    assert_eq!(shown(&keeper), first);

    let second = write(dir.path(), "second");
    keeper.look();
    assert_eq!(shown(&keeper), first, "not settled yet");
    keeper.look();
    assert_eq!(shown(&keeper), second);

    fs::write(dir.path().join("cert.pem"), "nonsense").unwrap();
    keeper.look();
    keeper.look();
    assert_eq!(shown(&keeper), second);
    fs::remove_file(dir.path().join("cert.pem")).unwrap();
    keeper.look();
    assert_eq!(shown(&keeper), second);
    let third = write(dir.path(), "third");
    keeper.look();
    keeper.look();
    assert_eq!(shown(&keeper), third);
}

#[test]
fn a_start_with_wrong_files_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    write(dir.path(), "good");
    let load = || Given::load(&cert, &key).map(|_| ()).map_err(|error| error.to_string());
    assert_eq!(load(), Ok(()));
    let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
    fs::write(&key, other.signing_key.serialize_pem()).unwrap();
    assert!(load().unwrap_err().contains("does not fit"));
    fs::write(&key, "").unwrap();
    assert!(load().unwrap_err().contains("key.pem: no private key"));
    fs::write(&cert, "").unwrap();
    assert!(load().unwrap_err().contains("cert.pem: no certificate"));
    fs::remove_file(&cert).unwrap();
    assert!(load().unwrap_err().contains("cert.pem"));
}
