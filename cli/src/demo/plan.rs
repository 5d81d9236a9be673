//! What the demo moves: where its files lie, which volumes there are, what the
//! guest does on each.

use super::{guest_fs, image, tools};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use towline_bench::stamp::{Order, VolumeHistory};
use towline_journal::state::GroupDir;

pub const GROUP: &str = "demo";
pub const STAMP: &str = "stamp";
pub const FS: &str = "fs";

/// What runs on the volume [`FS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FsRole {
    /// Mounted by the guest, with a database on it.
    Mounted,
    /// This machine cannot mount it (why): a second stamped volume.
    Stamped(String),
    /// The user's image, moved as it is, for this reason.
    Idle(String),
}

/// A disk at both ends.
#[derive(Clone, Debug)]
pub struct Volume {
    pub name: &'static str,
    pub source: PathBuf,
    pub target: PathBuf,
    pub size_bytes: u64,
}

/// The demo's folder and everything prepared in it.
pub struct Plan {
    pub dir: PathBuf,
    pub volumes: Vec<Volume>,
    pub fs_role: FsRole,
    /// One order for the writes of all stamped volumes.
    pub order: Arc<Order>,
    /// What stamped volumes hold before the guest starts.
    pub histories: Vec<VolumeHistory>,
    pub filled: image::Filled,
    /// A file system of the ext family is on [`FS`] and can be checked.
    pub fs_is_ext: bool,
}

impl Plan {
    /// Builds the disks in `dir`.
    pub fn build(dir: &Path, user_image: Option<&Path>, size_bytes: u64) -> anyhow::Result<Plan> {
        for folder in ["source", "target", "scratch"] {
            std::fs::create_dir_all(dir.join(folder))
                .with_context(|| format!("cannot create folders in {}", dir.display()))?;
        }
        let mut plan = Plan {
            dir: dir.to_owned(),
            volumes: Vec::new(),
            fs_role: FsRole::Mounted,
            order: Arc::new(Order::default()),
            histories: Vec::new(),
            filled: image::Filled::default(),
            fs_is_ext: false,
        };
        plan.add_stamped(0, STAMP, size_bytes)?;
        plan.add_fs(user_image, size_bytes)?;
        Ok(plan)
    }

    fn add_stamped(
        &mut self,
        number: u32,
        name: &'static str,
        size_bytes: u64,
    ) -> anyhow::Result<()> {
        let volume = self.volume(name, size_bytes);
        std::fs::File::create_new(&volume.source)
            .and_then(|file| file.set_len(size_bytes))
            .with_context(|| format!("cannot create {}", volume.source.display()))?;
        let history = VolumeHistory::prefilled(number, name, &volume.source, &self.order)?;
        self.histories.push(history);
        self.volumes.push(volume);
        Ok(())
    }

    fn add_fs(&mut self, user_image: Option<&Path>, size_bytes: u64) -> anyhow::Result<()> {
        let probed = guest_fs::probe(&self.dir.join("scratch"));
        let Some(user_image) = user_image else {
            if let Err(reason) = probed {
                self.fs_role = FsRole::Stamped(reason.to_string());
                return self.add_stamped(1, FS, size_bytes);
            }
            let volume = self.volume(FS, size_bytes);
            self.filled = image::build_ext4(&volume.source, size_bytes, &self.dir.join("scratch"))?;
            self.fs_is_ext = true;
            self.volumes.push(volume);
            return Ok(());
        };
        let mut volume = self.volume(FS, 0);
        volume.size_bytes = image::adopt(user_image, &volume.source)?;
        self.fs_is_ext = image::has_ext(&volume.source);
        if let Err(reason) = probed {
            self.fs_role = FsRole::Idle(format!("not mounted: {reason}"));
        } else if !self.fs_is_ext {
            let reason = "not mounted: no ext file system begins at its first byte";
            self.fs_role = FsRole::Idle(reason.into());
        }
        if self.fs_is_ext && tools::find("e2fsck").is_none() {
            self.fs_is_ext = false;
        }
        self.volumes.push(volume);
        Ok(())
    }

    fn volume(&self, name: &'static str, size_bytes: u64) -> Volume {
        Volume {
            name,
            source: self.dir.join("source").join(format!("{name}.raw")),
            target: self.dir.join("target").join(format!("{name}.raw")),
            size_bytes,
        }
    }

    pub fn find(&self, name: &str) -> anyhow::Result<&Volume> {
        self.volumes.iter().find(|v| v.name == name).with_context(|| format!("no volume {name}"))
    }

    pub fn source_state(&self) -> PathBuf {
        self.dir.join("source-state")
    }

    pub fn target_state(&self) -> PathBuf {
        self.dir.join("target-state")
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    pub fn source_socket(&self) -> PathBuf {
        self.dir.join("source.sock")
    }

    pub fn target_socket(&self) -> PathBuf {
        self.dir.join("target.sock")
    }
}

impl Drop for Plan {
    /// The ring of a stopped group stays for its next start; the demo has none.
    fn drop(&mut self) {
        let Ok(group) = GROUP.parse() else { return };
        if let Ok(Some(state)) = GroupDir::of(&self.source_state(), &group).load() {
            let _ = std::fs::remove_file(state.ring.path);
        }
    }
}
