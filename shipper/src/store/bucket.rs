//! What is asked of a store: create if absent, and read; of compaction also to replace and to
//! remove. All of it is here, so that tests can stand between.

use super::names;
use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use std::pin::Pin;
use std::sync::Arc;
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
    /// was unmounted, or moved.
    may_go_away: bool,
}

impl Objects {
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, group: &GroupName) -> Objects {
        let prefix = match prefix {
            "" => group.to_string(),
            prefix => format!("{prefix}/{group}"),
        };
        Objects { store, prefix, may_go_away: false }
    }

    /// As [`Objects::new`], in a folder.
    pub fn in_folder(store: Arc<dyn ObjectStore>, group: &GroupName) -> Objects {
        Objects { may_go_away: true, ..Objects::new(store, "", group) }
    }

    /// Whether the group's folder is the one that was begun.
    async fn check_there(&self) -> Result<()> {
        if self.read(names::GROUP, Some(1), u64::MAX).await?.is_some() {
            return Ok(());
        }
        let what = format!(
            "the store's folder of group {} has no {} any more: it was unmounted, moved or emptied; nothing \
             is written before it is back",
            self.prefix,
            names::GROUP
        );
        Err(Error::new(ErrorKind::Unreachable, what))
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
            let created =
                match self.store.put_opts(&path, PutPayload::from_bytes(bytes), options).await {
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
            found.bytes().await.map(Some).map_err(|e| failed("read", &path, e))
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
        _ => ErrorKind::Unreachable,
    };
    Error::caused(kind, format!("cannot {verb} {path} in the store"), error)
}
