//! What is asked of a store: create if absent, and read; of compaction also to replace and to
//! remove. All of it is here, so that tests can stand between.

use super::group::GROUP_BYTES_MAX;
use super::names;
use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use towline_block::GroupName;

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is durable, and ours.
    Yes,
    /// Something has that name already. It may be ours: an answer may have been lost.
    Exists,
}

/// One group's objects. A name is a path below the group's own prefix.
pub trait Bucket: Send + Sync {
    /// Durable once answered. An error says nothing about whether it happened, or will.
    fn create<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, Created>;

    /// The object, or at most its first `first` bytes; `None` when there is none. An
    /// object of more than `max` bytes is an error.
    fn read<'a>(&'a self, name: &'a str, first: Option<u64>, max: u64)
    -> Answer<'a, Option<Bytes>>;

    /// Puts `bytes` in the place of what has that name: whoever reads meanwhile gets one of
    /// the two as a whole.
    fn replace<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, ()>;

    /// Gone afterwards, also when it was not there.
    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()>;
}

/// A group's prefix in a real store.
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// A folder can go away, and what is written then lands in what its path leads to instead: it
    /// was unmounted or moved, or another disk is mounted in its place.
    may_go_away: bool,
    known: Mutex<Known>,
}

/// By what a store is known again.
#[derive(Default)]
struct Known {
    /// `group.json`, which never changes.
    group: Option<Bytes>,
    /// An object that was made here: its place stays taken. A copy of the store lacks it.
    object: Option<String>,
}

impl Objects {
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, group: &GroupName) -> Objects {
        let prefix = match prefix {
            "" => group.to_string(),
            prefix => format!("{prefix}/{group}"),
        };
        Objects { store, prefix, may_go_away: false, known: Mutex::default() }
    }

    /// As [`Objects::new`], in a folder.
    pub fn in_folder(store: Arc<dyn ObjectStore>, group: &GroupName) -> Objects {
        Objects { may_go_away: true, ..Objects::new(store, "", group) }
    }

    /// Whether the group's folder is the one that was begun.
    async fn check_there(&self) -> Result<()> {
        let (group, object) = {
            let known = self.known();
            (known.group.clone(), known.object.clone())
        };
        let unreachable = |what: String| {
            let what = format!("{what}; nothing is written before it is back");
            Err(Error::new(ErrorKind::Unreachable, what))
        };
        let Some(found) = self.read(names::GROUP, None, GROUP_BYTES_MAX).await? else {
            return unreachable(format!(
                "the store's folder of group {} has no {} any more: it was unmounted, moved or emptied",
                self.prefix,
                names::GROUP
            ));
        };
        let is_other = group.is_some_and(|group| group != found);
        let lacks = match object {
            Some(object) if !is_other => self.read(&object, Some(1), u64::MAX).await?.is_none(),
            _ => false,
        };
        if is_other || lacks {
            return unreachable(format!(
                "another store of group {} lies where the one was that is written: another disk is \
                 mounted there",
                self.prefix
            ));
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this is the store's `group.json`.
    fn learn_group(&self, bytes: &Bytes) {
        self.known().group.get_or_insert_with(|| bytes.clone());
    }

    fn path(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.prefix))
    }
}

impl Bucket for Objects {
    fn create<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, Created> {
        Box::pin(async move {
            let path = self.path(name);
            let is_watched = self.may_go_away && name != names::GROUP;
            if is_watched {
                self.check_there().await?;
            }
            let options = PutOptions::from(PutMode::Create);
            let payload = PutPayload::from_bytes(bytes.clone());
            let created = match self.store.put_opts(&path, payload, options).await {
                Ok(_) => Created::Yes,
                Err(
                    object_store::Error::AlreadyExists { .. }
                    | object_store::Error::Precondition { .. },
                ) => Created::Exists,
                Err(e) => return Err(failed("write", &path, e)),
            };
            // It may have gone away, and come back, in between.
            if is_watched {
                self.check_there().await?;
                if self.read(name, Some(1), u64::MAX).await?.is_none() {
                    let what = format!("{path} was written, and is not in the store's folder");
                    return Err(Error::new(ErrorKind::Unreachable, what));
                }
                self.known().object = Some(name.to_owned());
            } else if created == Created::Yes && name == names::GROUP {
                self.learn_group(&bytes);
            }
            Ok(created)
        })
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
        first: Option<u64>,
        max: u64,
    ) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move {
            let path = self.path(name);
            let range = first.map(|bytes| GetRange::Bounded(0..bytes));
            let options = GetOptions { range, ..GetOptions::default() };
            let found = match self.store.get_opts(&path, options).await {
                Ok(found) => found,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(e) => return Err(failed("read", &path, e)),
            };
            // Whoever writes there may write anything.
            if found.meta.size > max {
                let size = found.meta.size;
                return Err(Error::damaged(format!(
                    "{path} has {size} bytes, at most {max} belong there"
                )));
            }
            let bytes = found.bytes().await.map_err(|e| failed("read", &path, e))?;
            if name == names::GROUP && first.is_none() {
                self.learn_group(&bytes);
            }
            Ok(Some(bytes))
        })
    }

    fn replace<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        Box::pin(async move {
            let path = self.path(name);
            let put = self.store.put(&path, PutPayload::from_bytes(bytes)).await;
            put.map(drop).map_err(|e| failed("replace", &path, e))
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let path = self.path(name);
            match self.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(failed("remove", &path, e)),
            }
        })
    }
}

fn failed(verb: &str, path: &Path, error: object_store::Error) -> Error {
    use object_store::Error as Store;
    let kind = match &error {
        Store::NotSupported { .. } | Store::NotImplemented { .. } | Store::InvalidPath { .. } => {
            ErrorKind::InvalidInput
        }
        _ if is_refused_by_disk(&error) => ErrorKind::Storage,
        _ => ErrorKind::Unreachable,
    };
    Error::caused(kind, format!("cannot {verb} {path} in the store"), error)
}

/// The store is there and takes nothing: full, or not to be written.
fn is_refused_by_disk(error: &object_store::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            let kinds = [PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull];
            return kinds.contains(&error.kind());
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_full_is_there() {
        let kind = |source: std::io::ErrorKind| {
            let source = Box::new(std::io::Error::from(source));
            let error = object_store::Error::Generic { store: "LocalFileSystem", source };
            failed("write", &Path::from("x"), error).kind()
        };
        assert_eq!(kind(std::io::ErrorKind::StorageFull), ErrorKind::Storage);
        assert_eq!(kind(std::io::ErrorKind::ReadOnlyFilesystem), ErrorKind::Storage);
        assert_eq!(kind(std::io::ErrorKind::ConnectionReset), ErrorKind::Unreachable);
    }
}
