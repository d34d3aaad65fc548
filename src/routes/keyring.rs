//! The API keys that open this server, in memory, so that no request asks the store.
//!
//! The ring is a snapshot of the store's teams and keys, loaded at start and changed only through
//! its own methods: what is revoked or blocked is refused from the next request on. A key enters
//! the ring before the store (nobody knows its secret yet) and leaves it after, so a concurrent
//! revocation can never be undone by a late insertion. Looking up takes no lock.
//!
//! Only SHA-256 of a key's twenty raw bytes is kept. The map is keyed by the digest's first eight
//! bytes and the whole digest is compared in constant time.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
};

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    clock::Clock,
    id::{Entropy, KeyId, TeamId},
    store::{ApiKey, Standing, Store, StoreError, Team},
};

/// What every key starts with.
pub const KEY_PREFIX: &str = "e2b_";
const KEY_BYTES: usize = 20;
const MINUTE_S: i64 = 60;

type Digest = [u8; 32];

/// Every key of this server. Cheap to clone; clones share one ring.
#[derive(Clone)]
pub struct KeyRing {
    inner: Arc<Inner>,
}

struct Inner {
    snapshot: ArcSwap<Snapshot>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// None yet: nobody is the operator over HTTP.
    admin: OnceLock<Digest>,
}

#[derive(Clone, Default)]
struct Snapshot {
    teams: HashMap<TeamId, Arc<Team>>,
    keys: HashMap<[u8; 8], Vec<Arc<Entry>>>,
}

struct Entry {
    id: KeyId,
    team: TeamId,
    digest: Digest,
    /// The minute of the last use that was noted.
    used_minute: AtomicI64,
}

/// A key at its birth: the only time that its secret exists outside its owner's hands.
pub struct IssuedKey {
    /// What is stored.
    pub record: ApiKey,
    /// The key itself: `e2b_` and 40 hex digits.
    pub secret: String,
}

/// Why a key opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// It does not start with `e2b_`.
    #[error("no e2b_ prefix")]
    Prefix,
    /// It is not hex of twenty bytes.
    #[error("not a key's format")]
    Format,
    /// No team has it.
    #[error("unknown key")]
    Unknown,
}

// === impl KeyRing ===

impl KeyRing {
    /// Loads the teams and keys of the store.
    pub async fn load(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, StoreError> {
        let mut snapshot = Snapshot::default();
        for team in store.teams().await? {
            snapshot.teams.insert(team.id, Arc::new(team));
        }
        for key in store.keys().await? {
            snapshot.insert(entry_of(&key)?);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                snapshot: ArcSwap::from_pointee(snapshot),
                store,
                clock,
                entropy,
                admin: OnceLock::new(),
            }),
        })
    }

    /// Lets this token open what only the operator may see. The first one counts.
    pub fn allow_admin(&self, token: &str) {
        let _ = self.inner.admin.set(Sha256::digest(token).into());
    }

    /// Whether it is the operator's token.
    pub fn is_admin(&self, token: &str) -> bool {
        let digest: Digest = Sha256::digest(token).into();
        self.inner.admin.get().is_some_and(|admin| admin.ct_eq(&digest).into())
    }

    /// The team that a key's text opens. Notes the use, at most once a minute, in the background.
    pub fn open(&self, text: &str) -> Result<Arc<Team>, KeyRefused> {
        let digest = digest_of(text)?;
        let snapshot = self.inner.snapshot.load();
        let entry = snapshot.find(&digest).ok_or(KeyRefused::Unknown)?;
        let team = snapshot.teams.get(&entry.team).ok_or(KeyRefused::Unknown)?;
        self.note_use(entry);
        Ok(Arc::clone(team))
    }

    /// How many teams and keys there are.
    pub fn counts(&self) -> (usize, usize) {
        let snapshot = self.inner.snapshot.load();
        (snapshot.teams.len(), snapshot.keys.values().map(Vec::len).sum())
    }

    /// A team by its slug.
    pub fn team(&self, slug: &str) -> Option<Arc<Team>> {
        self.inner.snapshot.load().teams.values().find(|team| team.slug == slug).cloned()
    }

    /// The oldest team: the one that the first start makes.
    pub fn first_team(&self) -> Option<Arc<Team>> {
        let snapshot = self.inner.snapshot.load();
        snapshot.teams.values().min_by_key(|team| (team.created_at, team.id)).cloned()
    }

    /// Adds a team; `Conflict` when the slug is taken. The slug is the caller's to check.
    pub async fn add_team(&self, slug: &str, name: &str) -> Result<Team, StoreError> {
        let team = Team {
            id: TeamId::generate(&*self.inner.entropy),
            slug: slug.to_owned(),
            name: name.to_owned(),
            standing: Standing::Good,
            created_at: self.inner.clock.now(),
        };
        self.inner.store.add_team(team.clone()).await?;
        self.change(|snapshot| {
            snapshot.teams.insert(team.id, Arc::new(team.clone()));
        });
        Ok(team)
    }

    /// Changes what a team may do, from the next request on.
    pub async fn set_standing(&self, id: TeamId, standing: Standing) -> Result<(), StoreError> {
        self.inner.store.set_standing(id, standing.clone()).await?;
        self.change(|snapshot| {
            if let Some(team) = snapshot.teams.get(&id) {
                let changed = Team { standing: standing.clone(), ..Team::clone(team) };
                snapshot.teams.insert(id, Arc::new(changed));
            }
        });
        Ok(())
    }

    /// Makes a key for a team. The secret is in the answer and nowhere else.
    pub async fn issue(&self, team: TeamId, name: &str) -> Result<IssuedKey, StoreError> {
        let mut raw = [0; KEY_BYTES];
        self.inner.entropy.fill(&mut raw);
        let digits = hex::encode(raw);
        let record = ApiKey {
            id: KeyId::generate(&*self.inner.entropy),
            team,
            name: name.to_owned(),
            hash: hex::encode(Sha256::digest(raw)),
            mask: (digits[..2].to_owned(), digits[digits.len() - 4..].to_owned()),
            created_at: self.inner.clock.now(),
            last_used: None,
        };
        let entry = entry_of(&record)?;
        self.change(|snapshot| snapshot.insert(Arc::clone(&entry)));
        if let Err(error) = self.inner.store.add_key(record.clone()).await {
            self.change(|snapshot| snapshot.remove(record.id));
            return Err(error);
        }
        Ok(IssuedKey { record, secret: format!("{KEY_PREFIX}{digits}") })
    }

    /// Takes a key back, from the next request on; `Missing` when there is none.
    pub async fn revoke(&self, id: KeyId) -> Result<(), StoreError> {
        self.inner.store.remove_key(id).await?;
        self.change(|snapshot| snapshot.remove(id));
        Ok(())
    }

    fn change(&self, edit: impl Fn(&mut Snapshot)) {
        self.inner.snapshot.rcu(|old| {
            let mut new = Snapshot::clone(old);
            edit(&mut new);
            new
        });
    }

    fn note_use(&self, entry: &Arc<Entry>) {
        let now = self.inner.clock.now();
        let minute = now.as_second().div_euclid(MINUTE_S);
        let noted = entry.used_minute.load(Ordering::Relaxed);
        let first = minute != noted
            && entry
                .used_minute
                .compare_exchange(noted, minute, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if !first {
            return;
        }
        let (store, id) = (Arc::clone(&self.inner.store), entry.id);
        tokio::spawn(async move {
            if let Err(error) = store.touch_key(id, now).await {
                tracing::debug!(key.id = %id, %error, "last use of a key not noted");
            }
        });
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (teams, keys) = self.counts();
        formatter.debug_struct("KeyRing").field("teams", &teams).field("keys", &keys).finish()
    }
}

// === impl IssuedKey ===

impl fmt::Debug for IssuedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IssuedKey").field("record", &self.record).finish_non_exhaustive()
    }
}

// === impl Snapshot ===

impl Snapshot {
    fn insert(&mut self, entry: Arc<Entry>) {
        self.keys.entry(bucket(&entry.digest)).or_default().push(entry);
    }

    fn remove(&mut self, id: KeyId) {
        self.keys.retain(|_, entries| {
            entries.retain(|entry| entry.id != id);
            !entries.is_empty()
        });
    }

    fn find(&self, digest: &Digest) -> Option<&Arc<Entry>> {
        self.keys.get(&bucket(digest))?.iter().find(|entry| entry.digest.ct_eq(digest).into())
    }
}

fn bucket(digest: &Digest) -> [u8; 8] {
    let mut bucket = [0; 8];
    bucket.copy_from_slice(&digest[..8]);
    bucket
}

fn digest_of(text: &str) -> Result<Digest, KeyRefused> {
    let digits = text.strip_prefix(KEY_PREFIX).ok_or(KeyRefused::Prefix)?;
    let mut raw = [0; KEY_BYTES];
    hex::decode_to_slice(digits, &mut raw).map_err(|_| KeyRefused::Format)?;
    Ok(Sha256::digest(raw).into())
}

fn entry_of(key: &ApiKey) -> Result<Arc<Entry>, StoreError> {
    let mut digest = [0; 32];
    hex::decode_to_slice(&key.hash, &mut digest)
        .map_err(|_| StoreError::Backend(format!("the hash of key {} is not SHA-256 in hex", key.id)))?;
    let minute = key.last_used.map_or(i64::MIN, |at| at.as_second().div_euclid(MINUTE_S));
    Ok(Arc::new(Entry { id: key.id, team: key.team, digest, used_minute: AtomicI64::new(minute) }))
}
