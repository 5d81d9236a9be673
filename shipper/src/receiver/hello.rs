//! HELLO: which group, who writes it, which volumes go where; and WELCOME.

use super::bound::Bound;
use super::clerk::{Clerk, Current, old_epoch, refusal_of};
use super::counters::add;
use super::lacking::Lacking;
use super::lanes::Lanes;
use super::medium::{Medium, Target};
use super::order::Outbox;
use super::recovery::Store;
use super::room;
use super::state::{STATE_VERSION, State, TargetRecord};
use super::stream::Stream;
use super::target::{self, TargetDisk};
use crate::batch::{Keyring, VERSION};
use crate::error::ErrorKind;
use crate::wire::{
    Hello, Message, PROTOCOL, Promoted, Refusal, RefusalCode, VOLUMES_MAX, VolumeSize, Welcome,
};
use std::path::Path;
use towline_block::{Epoch, VolumeName};

impl Clerk {
    /// HELLO on a new connection: it becomes the current one, or hears why not.
    pub fn hello(&mut self, connection: u64, hello: Hello, outbox: Outbox) {
        self.commit();
        let join = rand::random();
        match self.welcome(&hello, join) {
            Ok(welcome) => {
                if let Some(old) = self.current.take() {
                    let what = format!(
                        "session {} of group {} took over from {}: end this shipper",
                        hello.session, hello.group, old.session
                    );
                    let refusal = Refusal::new(RefusalCode::Superseded, what);
                    old.end(refusal);
                }
                add(&self.desk.counters.sessions, 1);
                self.note(None);
                let _ = outbox.send(Message::Welcome(welcome));
                let lacking = self.bound.as_ref().and_then(|bound| bound.lacking.as_ref());
                for lacks in lacking.map(Lacking::frames).unwrap_or_default() {
                    let _ = outbox.send(Message::Lacks(lacks));
                }
                let lanes = Lanes::new(join);
                self.current = Some(Current { connection, session: hello.session, outbox, lanes });
            }
            Err(refusal) => {
                add(&self.desk.counters.refused, 1);
                tracing::warn!(group = %hello.group, code = ?refusal.code, "{}", refusal.message);
                if self.current.is_none() {
                    self.note(Some(refusal.message.clone()));
                }
                let _ = outbox.send(Message::Error(refusal));
            }
        }
    }

    fn welcome(&mut self, hello: &Hello, join: u64) -> Result<Welcome, Refusal> {
        check_hello(hello)?;
        check_key(hello, &self.desk.keys)?;
        if let Some(group) = self.desk.group.as_ref().filter(|group| **group != hello.group) {
            let what = format!("this receiver is for group {group}, not {}", hello.group);
            return Err(Refusal::new(RefusalCode::WrongGroup, what));
        }
        if self.bound.is_none() {
            let store = self.create(hello)?;
            self.bind(store);
        }
        let Some(bound) = &mut self.bound else {
            return Err(Refusal::new(RefusalCode::Storage, "the receiver has no state"));
        };
        let state = bound.books.get();
        check_group(hello, &state)?;
        if state.promoted.is_none() {
            check_epoch(hello, bound, &state)?;
            check_volumes(hello, &state)?;
        }
        bound.settle();
        let durable = &bound.durable;
        Ok(Welcome {
            version: PROTOCOL,
            batch_format: VERSION,
            number: durable.number,
            hash: durable.hash,
            position: durable.position,
            claims_upto: durable.claims_upto,
            stream_bytes: durable.stream_bytes,
            point: durable.point.map(|point| point.position),
            broken: !durable.whole,
            lacks: bound.lacking.as_ref().map_or(0, |lacking| lacking.frames().len() as u32),
            join: Some(join),
            promoted: bound.promoted.as_ref().map(|takeover| Promoted {
                attempt: takeover.attempt.clone(),
                epoch: takeover.epoch,
                position: takeover.position,
                exports: bound.exports.clone().unwrap_or_default(),
            }),
        })
    }

    /// Binds this receiver to the group: targets opened or created, then the state.
    fn create(&self, hello: &Hello) -> Result<Store, Refusal> {
        for (name, path) in &self.desk.targets {
            if hello.volumes.iter().all(|volume| volume.name != *name) {
                let path = path.display();
                tracing::warn!(target = %name, "group {} has no such volume; {path} stays unused", hello.group);
            }
        }
        let open = |volume: &VolumeSize| self.open_target(volume);
        let targets: Vec<Target> = hello.volumes.iter().map(open).collect::<Result<_, _>>()?;
        room::check(&self.desk.layout, &targets, &self.desk.limits)
            .map_err(|error| refusal_of(&error))?;
        let record = |target: &Target| TargetRecord {
            name: target.name.clone(),
            size_bytes: target.disk.size_bytes(),
            path: target::place(target.disk.path()),
        };
        let state = State {
            version: STATE_VERSION,
            group: hello.group.clone(),
            group_uuid: hello.group_uuid,
            epoch: hello.epoch,
            volumes: targets.iter().map(record).collect(),
            applied: Stream::default(),
            marks_durable: None,
            rewind: None,
            decisions: Vec::new(),
            promoted: None,
            last_error: None,
        };
        let desk = &self.desk;
        Store::create(&desk.layout, &desk.medium, &desk.limits, state, targets, &desk.keys)
            .map_err(|error| refusal_of(&error))
    }

    fn open_target(&self, volume: &VolumeSize) -> Result<Target, Refusal> {
        let given = self.desk.targets.iter().find(|(name, _)| *name == volume.name);
        let Some((name, path)) = given else {
            let what = format!(
                "the receiver has no target for volume {}: start it with --target {}=PATH",
                volume.name, volume.name
            );
            return Err(Refusal::new(RefusalCode::UnknownVolume, what));
        };
        let opened = open_or_create(name.clone(), path, volume.size_bytes, &self.desk.medium);
        opened.map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => {
                let what = format!("volume {}: target {error}", volume.name);
                Refusal::new(RefusalCode::SizeMismatch, what)
            }
            _ => refusal_of(&error),
        })
    }
}

/// A target of this size, owned from now on; what is made is durable.
pub fn open_or_create(
    name: VolumeName,
    path: &Path,
    size_bytes: u64,
    medium: &Medium,
) -> crate::error::Result<Target> {
    let created = target::is_to_be_made(path);
    let disk = TargetDisk::open_or_create(path, size_bytes)?;
    if created {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        medium.sync_dir(dir.unwrap_or(Path::new(".")))?;
    }
    Ok(Target::new(name, disk, medium.clone()))
}

fn check_hello(hello: &Hello) -> Result<(), Refusal> {
    if hello.version != PROTOCOL {
        let what = format!(
            "the shipper speaks protocol {}, this receiver {PROTOCOL}: update the older one",
            hello.version
        );
        return Err(Refusal::new(RefusalCode::Incompatible, what));
    }
    let count = hello.volumes.len();
    let empty = hello.volumes.iter().any(|volume| volume.size_bytes == 0);
    let mut names: Vec<_> = hello.volumes.iter().map(|volume| &volume.name).collect();
    names.sort_unstable();
    names.dedup();
    if count == 0 || count > VOLUMES_MAX || names.len() != count || empty {
        let what = format!("HELLO names {count} volumes: 1 to {VOLUMES_MAX}, each once, not empty");
        return Err(Refusal::new(RefusalCode::Protocol, what));
    }
    if hello.epoch == Epoch(0) {
        return Err(Refusal::new(RefusalCode::Protocol, "epochs start at 1"));
    }
    Ok(())
}

/// What would be refused batch by batch is refused before the first.
fn check_key(hello: &Hello, keys: &Keyring) -> Result<(), Refusal> {
    match hello.key {
        Some(id) => keys.get(id).map(|_| ()).map_err(|error| {
            let what = format!("the group's batches are {error}");
            Refusal::new(RefusalCode::NoKey, what)
        }),
        None if keys.newest().is_some() => Err(unsealed()),
        None => Ok(()),
    }
}

/// Whoever gave this receiver keys expects nothing else.
pub fn unsealed() -> Refusal {
    let what = "this receiver was given keys and takes only sealed batches: start the shipper with \
                its key file (--key FILE)";
    Refusal::new(RefusalCode::NotAuthorised, what)
}

fn check_group(hello: &Hello, state: &State) -> Result<(), Refusal> {
    if hello.group != state.group || hello.group_uuid != state.group_uuid {
        let what = format!(
            "this receiver holds group {} ({}), not {} ({}): start another one with its own state \
             directory and targets",
            state.group, state.group_uuid, hello.group, hello.group_uuid
        );
        return Err(Refusal::new(RefusalCode::WrongGroup, what));
    }
    Ok(())
}

fn check_epoch(hello: &Hello, bound: &mut Bound, state: &State) -> Result<(), Refusal> {
    if hello.epoch < state.epoch {
        return Err(old_epoch(hello.epoch, state.epoch));
    }
    let risen = bound.books.update(|state| state.epoch = hello.epoch);
    risen.map_err(|error| refusal_of(&error))?;
    bound.epoch = hello.epoch;
    Ok(())
}

fn check_volumes(hello: &Hello, state: &State) -> Result<(), Refusal> {
    let same_names = hello.volumes.len() == state.volumes.len()
        && hello.volumes.iter().zip(&state.volumes).all(|(theirs, ours)| theirs.name == ours.name);
    if !same_names {
        let list = |names: Vec<&str>| names.join(", ");
        let what = format!(
            "the group's volumes were {} and are now {}: volumes cannot change while a group ships",
            list(state.volumes.iter().map(|volume| volume.name.as_str()).collect()),
            list(hello.volumes.iter().map(|volume| volume.name.as_str()).collect())
        );
        return Err(Refusal::new(RefusalCode::UnknownVolume, what));
    }
    for (theirs, ours) in hello.volumes.iter().zip(&state.volumes) {
        if theirs.size_bytes != ours.size_bytes {
            let what = format!(
                "volume {} has {} bytes at the source and {} at the target {}",
                ours.name,
                theirs.size_bytes,
                ours.size_bytes,
                ours.path.display()
            );
            return Err(Refusal::new(RefusalCode::SizeMismatch, what));
        }
    }
    Ok(())
}
