//! Where the spill lies: where `state.json` says, and from now on where the operator wishes.
//!
//! | recorded | wished | records there that the target lacks | the spill lies |
//! |---|---|---|---|
//! | folder | folder | any | in the folder |
//! | a device | the same, by its id | any | on the device, under its new path |
//! | anything | something else | some | where it was; a later start moves it |
//! | anything | the folder | none | in the folder |
//! | anything | a device that is blank or the group's | none | on that device |
//! | anything | a device that holds something else | any | refused, untouched, unless told |
//! | a device | the same path, which cannot be opened | lost | nowhere, loudly; if strict: refused |

use super::*;
use crate::spill::device::Device;
use crate::spill::{Place, scan};
use crate::state::SpillDevice;

enum Wish {
    Folder,
    Device(Device),
    /// It was used before and cannot be opened: guests are served without.
    Gone,
}

/// What is known of the place before it is used.
pub(crate) struct Whereabouts {
    /// Where the last owner wrote.
    pub(crate) recorded: Store,
    wish: Wish,
}

impl Whereabouts {
    /// Looks at what the operator wishes for. Writes nothing.
    pub(crate) fn look(
        dir: &GroupDir,
        state: Option<&GroupState>,
        options: &SpillOptions,
    ) -> Result<Whereabouts> {
        let known = state.and_then(|state| state.spill.as_ref());
        let uuid = state.map(|state| state.group_uuid.0);
        let wish = match &options.device {
            None => Wish::Folder,
            Some(path) => match Device::own(path) {
                Ok(device) => {
                    device.check(uuid.as_ref(), options.overwrite)?;
                    Wish::Device(device)
                }
                Err(error)
                    if error.kind() == ErrorKind::Io
                        && !options.strict
                        && known.is_some_and(|known| known.path == *path) =>
                {
                    tracing::error!(
                        "{error}: the group is served without a spill, with durability \
                         \"process\"; what only the spill had is compared with the target"
                    );
                    Wish::Gone
                }
                Err(error) => return Err(error),
            },
        };
        let recorded = match (&wish, known) {
            (Wish::Device(device), Some(known)) if device.holder.is(known.id) => {
                Store::device(device.path().to_owned(), known.id)
            }
            _ => Store::of(dir, state),
        };
        Ok(Whereabouts { recorded, wish })
    }

    /// Where segments are from now on, and which there are; `None` without a place.
    pub(crate) fn settle(
        self,
        dir: &GroupDir,
        state: &mut GroupState,
        found: Segments,
        unix_ns: u64,
    ) -> Result<Option<(Place, Segments)>> {
        let Whereabouts { recorded, wish } = self;
        let known = state.spill.clone();
        let is_needed = !found.live.is_empty() || !found.history.is_empty();
        let device = match (wish, &known) {
            (Wish::Gone, _) => return Ok(None),
            (Wish::Folder, None) => None,
            (Wish::Device(device), Some(known)) if device.holder.is(known.id) => {
                if device.path() != known.path {
                    let (path, id) = (device.path().to_owned(), known.id);
                    state.spill = Some(SpillDevice { path, id });
                    dir.store(state)?;
                }
                Some(device)
            }
            (_, known) if is_needed => {
                tracing::warn!(
                    "the spill stays in {} until the target has what is there: start the proxy \
                     again then to move it",
                    recorded.path().display()
                );
                known.as_ref().map(|known| Device::own(&known.path)).transpose()?
            }
            (wish, _) => return moved(dir, state, wish, unix_ns).map(Some),
        };
        Ok(Some((Place { store: recorded, device }, found)))
    }
}

/// Nothing is needed where it was.
fn moved(
    dir: &GroupDir,
    state: &mut GroupState,
    wish: Wish,
    unix_ns: u64,
) -> Result<(Place, Segments)> {
    let mut device = match wish {
        Wish::Device(device) => Some(device),
        Wish::Folder | Wish::Gone => None,
    };
    state.spill = match &mut device {
        Some(device) => {
            // Under a new id each time: what the group left there before is not its spill.
            let id = device.claim(state.group_uuid.0, state.group.as_str(), unix_ns)?;
            Some(SpillDevice { path: device.path().to_owned(), id })
        }
        None => None,
    };
    dir.store(state)?;
    if state.spill.is_some() && dir.spill_path().exists() {
        let folder = dir.spill_path();
        std::fs::remove_dir_all(&folder)
            .map_err(|e| Error::io(format!("cannot remove {}", folder.display()), e))?;
    }
    let store = Store::of(dir, Some(state));
    let segments = scan(&store, &state.group_uuid.0).sorted(&state.ring.id.0, u64::MAX, None);
    tracing::info!(
        group = %state.group, place = %store.path().display(), segments = segments.files,
        "the spill lies here from now on"
    );
    Ok((Place { store, device }, segments))
}
