//! An export of which the source's machine or a device dies at any step.

use super::*;
use crate::batch::Sealed;
use crate::device::shelf::{Own, Shelf};
use std::path::Path;
use towline_journal::GroupDir;

/// The packs' batches, and what the volumes hold after them.
struct Journey {
    dir: TempDir,
    packs: Vec<Vec<Sealed>>,
    model: Vec<Vec<u8>>,
    group_uuid: GroupUuid,
}

impl Journey {
    fn new(seed: u64) -> Journey {
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.unwrap();
        for name in ["there/d0", "there/d1", "target"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let (mut source, group_uuid) = Source::new(seed);
        let packs = (0..PACKS).map(|_| (0..2).map(|_| source.batch()).collect()).collect();
        Journey { dir, packs, model: source.model, group_uuid }
    }

    /// All that an export writes.
    fn there(&self) -> PathBuf {
        self.dir.path().join("there")
    }

    fn devices(&self) -> Vec<PathBuf> {
        ["d0", "d1"].map(|name| self.there().join(name)).to_vec()
    }

    fn open(&self, medium: Medium) -> Shelf {
        self.open_on(self.devices(), medium).unwrap()
    }

    fn open_on(&self, to: Vec<PathBuf>, medium: Medium) -> crate::error::Result<Shelf> {
        let volume = |(n, size): (usize, &usize)| VolumeSize {
            name: format!("disk{n}").parse().unwrap(),
            size_bytes: *size as u64,
        };
        let own = Own {
            group: "erp".parse().unwrap(),
            group_uuid: self.group_uuid,
            epoch: Epoch(1),
            volumes: SIZES.iter().enumerate().map(volume).collect(),
            data_bytes: 0,
        };
        let plan = ExportPlan { to, pack_bytes: PACK_BYTES_MIN, expect: None, pki: None };
        let dir = GroupDir::of(&self.there().join("state"), &own.group);
        Shelf::open(&own, &plan, None, &dir, medium)
    }

    /// Puts the next pack on a device. Answers which.
    fn put(&self, shelf: &mut Shelf) -> u32 {
        let number = shelf.manifest.packs.len() + 1;
        let (folder, device, bytes_max) = shelf.choose().unwrap();
        let mut writer = shelf.begin_pack(&folder, bytes_max).unwrap();
        self.packs[number - 1].iter().for_each(|sealed| writer.push(sealed).unwrap());
        let (map, after) = writer.close(&folder, number).unwrap();
        shelf.add(device, &map, after).unwrap();
        device
    }

    /// Goes on to the end. `closed` hears of each pack that the source may forget.
    fn run(&self, medium: Medium, mut closed: impl FnMut()) {
        let mut shelf = self.open(medium);
        while shelf.manifest.packs.len() < PACKS {
            self.put(&mut shelf);
            closed();
        }
        shelf.finish().unwrap();
        assert!(shelf.views().iter().all(|view| view.up_to_date));
    }

    /// What is left of a device's folder when the device is not mounted. Answers where the
    /// device is.
    fn unmount(&self, device: &Path) -> PathBuf {
        let away = self.dir.path().join("away");
        std::fs::rename(device, &away).unwrap();
        std::fs::create_dir(device).unwrap();
        away
    }

    fn mount(&self, away: &Path, device: &Path) {
        std::fs::remove_dir(device).unwrap();
        std::fs::rename(away, device).unwrap();
    }

    /// The devices bring a target to where the volumes were.
    fn assert_brings_all(&self, at: &str) {
        let target = self.dir.path().join("target");
        lay_out(&target, &Default::default());
        let _ = std::fs::remove_dir_all(target.join("state"));
        let config = ImportConfig {
            devices: self.devices(),
            group: None,
            trust: Trust::Unsigned,
            state_dir: target.join("state"),
            targets: (0..2)
                .map(|n| (format!("disk{n}").parse().unwrap(), target.join(format!("t{n}"))))
                .collect(),
            keys: Keyring::default(),
            jobs: 1,
            without_missing: false,
        };
        let imported = import(&config, &AtomicU64::new(0)).unwrap_or_else(|e| panic!("{at}: {e}"));
        let lacking = imported.stands.map(|stands| stands.lacking_bytes);
        assert_eq!(lacking, Some(Some(0)), "{at}");
        for (n, model) in self.model.iter().enumerate() {
            assert!(std::fs::read(target.join(format!("t{n}"))).unwrap() == *model, "{at}");
        }
    }
}

#[test]
fn what_was_acknowledged_of_an_export_outlives_a_crash_at_any_step_and_it_goes_on() {
    let journey = Journey::new(5);
    let recorder = Arc::new(Recorder::default());
    let mut closed = Vec::new();
    journey.run(Medium::observed(recorder.clone()), || closed.push(recorder.len()));
    journey.assert_brings_all("undisturbed");
    let changes = recorder.take();
    assert!(changes.len() > 100, "{} changes", changes.len());
    let mut model = Model::default();
    for (step, change) in changes.iter().enumerate() {
        for crash in [Crash::Kill, Crash::Torn, Crash::Power, Crash::PowerMixed(step as u64)] {
            let at = format!("step {step} of {}, {crash:?}: {change:?}", changes.len());
            lay_out(&journey.there(), &model.after(crash, Some(change)));
            let acknowledged = closed.iter().filter(|end| **end <= step).count();
            let kept = journey.open(Medium::default()).manifest.packs.len();
            assert!(kept >= acknowledged, "{at}: {kept} packs, {acknowledged} acknowledged");
            journey.run(Medium::default(), || {});
            journey.assert_brings_all(&at);
        }
        model.make(change);
    }
}

/// Two devices with a pack each, of an export that was killed then.
fn begun() -> (Journey, [PathBuf; 2]) {
    let journey = Journey::new(6);
    let mut shelf = journey.open(Medium::default());
    assert_eq!([journey.put(&mut shelf), journey.put(&mut shelf)], [1, 2]);
    let [first, second] = ["d0", "d1"].map(|name| journey.there().join(name));
    (journey, [first, second])
}

#[test]
fn a_mount_point_without_its_device_is_no_new_device() {
    let (journey, [_, second]) = begun();
    let away = journey.unmount(&second);
    let mut shelf = journey.open(Medium::default());
    assert_eq!(shelf.manifest.devices, 2);
    while shelf.manifest.packs.len() < PACKS {
        assert_eq!(journey.put(&mut shelf), 1);
    }
    shelf.finish().unwrap();
    let told: Vec<_> = shelf.views().iter().map(|view| (view.device, view.up_to_date)).collect();
    assert_eq!(told, [(1, true), (2, false)]);
    assert_eq!(std::fs::read_dir(&second).unwrap().count(), 0, "below the mount point");

    journey.mount(&away, &second);
    let shelf = journey.open(Medium::default());
    assert!(shelf.views().iter().all(|view| view.up_to_date));
    journey.assert_brings_all("plugged in again");
}

#[test]
fn an_export_without_any_of_its_devices_waits_for_one() {
    let (journey, [_, second]) = begun();
    let away = journey.unmount(&second);
    let shelf = journey.open_on(vec![second.clone()], Medium::default()).unwrap();
    let error = shelf.choose().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains(&second.display().to_string()), "{error}");
    journey.mount(&away, &second);
    assert_eq!(shelf.choose().unwrap().1, 2);
}

#[test]
fn a_device_is_known_in_another_folder_and_its_old_one_is_no_new_device() {
    let (journey, [first, second]) = begun();
    let elsewhere = journey.dir.path().join("away");
    journey.unmount(&second);
    let error = journey.open_on(vec![second.clone(), elsewhere.clone()], Medium::default());
    let error = error.err().expect("which of them is device 2?");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    journey.open_on(vec![first.clone(), elsewhere], Medium::default()).unwrap();
    let shelf = journey.open_on(vec![first, second], Medium::default()).unwrap();
    let told: Vec<_> = shelf.views().iter().map(|view| (view.device, view.up_to_date)).collect();
    assert_eq!(told, [(1, true), (2, false)]);
}

#[test]
fn a_device_with_packs_that_is_not_among_the_folders_is_told_as_behind() {
    let (journey, [first, second]) = begun();
    let shelf = journey.open_on(vec![first], Medium::default()).unwrap();
    let views = shelf.views();
    let told: Vec<_> = views.iter().map(|view| (view.device, view.up_to_date)).collect();
    assert_eq!(told, [(1, true), (2, false)]);
    assert_eq!(views[1].dir.as_deref(), Some(second.canonicalize().unwrap().as_path()));
}

#[test]
fn devices_that_are_never_there_together_are_brought_up_to_date_one_by_one() {
    let (journey, [first, second]) = begun();
    let mut shelf = journey.open_on(vec![second], Medium::default()).unwrap();
    while shelf.manifest.packs.len() < PACKS {
        journey.put(&mut shelf);
    }
    shelf.finish().unwrap();
    let told = |shelf: &Shelf| -> Vec<_> {
        shelf.views().iter().map(|view| (view.device, view.up_to_date)).collect()
    };
    assert_eq!(told(&shelf), [(2, true), (1, false)]);
    let shelf = journey.open_on(vec![first], Medium::default()).unwrap();
    assert_eq!(told(&shelf), [(1, true), (2, true)]);
}
