//! A seeded world: several shippers, some dead, with objects on their way that may land
//! at any moment, also in the middle of somebody else's takeover; readers beside them, and
//! compactions.

use super::*;
use crate::batch::{Batch, Keyring, Op};
use crate::store::{Base, BaseReader, Compaction, compact};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Objects that one shipper may have on their way: as many as the format allows.
const FLYING_MAX: usize = crate::store::AHEAD_MAX as usize;

/// An object on its way.
struct Flying {
    made: Made,
    /// Once it landed: whether it is what lies there.
    landed: Option<bool>,
}

/// The shelf, on which anything that flies may land before any request.
struct World {
    shelf: Shelf,
    flying: Mutex<Vec<Flying>>,
    rng: Mutex<StdRng>,
}

impl World {
    fn roll(&self, sides: usize) -> usize {
        self.rng.lock().unwrap().random_range(0..sides)
    }

    fn land_some(&self) {
        while self.roll(3) == 0 {
            let open: Vec<usize> = {
                let flying = self.flying.lock().unwrap();
                (0..flying.len()).filter(|at| flying[*at].landed.is_none()).collect()
            };
            if open.is_empty() {
                return;
            }
            self.land(open[self.roll(open.len())]);
        }
    }

    fn land(&self, at: usize) {
        let flying = &mut self.flying.lock().unwrap()[at];
        let (name, bytes) = flying.made.as_put();
        self.shelf.put_if_absent(&name, bytes.clone());
        flying.landed = Some(self.shelf.get(&name, None) == Some(bytes));
    }
}

impl Bucket for World {
    fn create<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, Created> {
        self.land_some();
        self.shelf.create(name, bytes)
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
        first: Option<u64>,
        max: u64,
    ) -> Answer<'a, Option<Bytes>> {
        self.land_some();
        self.shelf.read(name, first, max)
    }

    fn replace<'a>(&'a self, name: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        self.land_some();
        self.shelf.replace(name, bytes)
    }

    fn remove<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        self.land_some();
        self.shelf.remove(name)
    }
}

struct Shipper {
    writer: Writer,
    session: SessionId,
    /// Its objects that are not acknowledged, as indexes of what flies.
    window: VecDeque<usize>,
}

/// Folds all there is, and gives back at once or later what that replaces.
async fn fold_all(bucket: &Arc<dyn Bucket>, grace: u64, seed: u64) {
    let plan = Compaction {
        keys: Keyring::default(),
        history: Duration::ZERO,
        grace: Duration::from_nanos(grace),
        drop_marks: Vec::new(),
        now_unix_ns: 10,
    };
    let done = compact(bucket, &group(SessionId([1; 16])), &plan).await;
    done.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
}

/// What a batch leaves at the one place where all write.
fn leave(place: &mut Vec<u8>, batch: &Batch) {
    for entry in batch.view().ops() {
        if let Op::Write { offset, payload, .. } = entry.op {
            let (at, end) = (offset as usize, offset as usize + payload.len());
            place.resize(place.len().max(end), 0);
            place[at..end].copy_from_slice(payload);
        }
    }
}

/// All batches that count, from the first on: those of a base are found by their hashes among
/// all that were ever made. The base's content has to be theirs.
async fn whole_chain(
    bucket: &Arc<dyn Bucket>,
    made: &HashMap<crate::BatchHash, Bytes>,
    seed: u64,
) -> Vec<Bytes> {
    let Some(base) = Base::newest(&**bucket, GROUP).await.unwrap() else {
        return read_all(bucket, 1).await.unwrap();
    };
    let open = |bytes: &Bytes| Batch::open(bytes.to_vec(), &Keyring::default()).unwrap();
    let (mut folded, mut hash) = (Vec::new(), base.after.hash);
    while hash != crate::BatchHash::NONE {
        let bytes = &made[&hash];
        folded.push(bytes.clone());
        hash = open(bytes).view().prev_hash();
    }
    folded.reverse();
    assert_eq!(folded.len() as u64, base.after.number, "seed {seed}");
    let (mut model, mut place, number) = (Vec::new(), Vec::new(), base.after.number);
    folded.iter().for_each(|bytes| leave(&mut model, &open(bytes)));
    let mut reader = BaseReader::new(bucket.clone(), base, vec![1 << 20]);
    while let Some(batches) = reader.next(&Keyring::default()).await.unwrap() {
        batches.iter().for_each(|batch| leave(&mut place, batch));
    }
    assert_eq!(place, model, "seed {seed}: the base is another");
    folded.extend(read_all(bucket, number + 1).await.unwrap());
    folded
}

/// Runs one history; answers how many batches were acknowledged, how many sessions it took and
/// how many bases were made.
async fn history(seed: u64) -> (usize, u32, u32) {
    let world = Arc::new(World {
        shelf: Shelf::default(),
        flying: Mutex::default(),
        rng: Mutex::new(StdRng::seed_from_u64(seed)),
    });
    let bucket: Arc<dyn Bucket> = world.clone();
    let mut shippers: Vec<Shipper> = Vec::new();
    let mut acked: BTreeMap<u64, crate::BatchHash> = BTreeMap::new();
    let (mut seen, mut reader) = (Vec::new(), None);
    let mut born = 0_u8;
    let mut sessions = 0;
    let mut made_ever: HashMap<crate::BatchHash, Bytes> = HashMap::new();
    for _ in 0..150 {
        match world.roll(21) {
            20 => fold_all(&bucket, world.roll(2) as u64 * 20, seed).await,
            0 if born < 12 => {
                born += 1;
                if world.roll(2) == 0 && !shippers.is_empty() {
                    // Killed: what flies may still land.
                    shippers.remove(world.roll(shippers.len()));
                }
                let session = SessionId([born; 16]);
                let writer = Writer::take_over(&bucket, &group(session)).await.unwrap();
                sessions = writer.session();
                if let Some((number, hash)) = acked.last_key_value() {
                    let at = writer.after();
                    assert!(at.number >= *number, "seed {seed}: batch {number} was acknowledged");
                    assert!(
                        at.number > *number || at.hash == *hash,
                        "seed {seed}: another {number}"
                    );
                }
                shippers.push(Shipper { writer, session, window: VecDeque::new() });
            }
            1 | 2 => {
                let from = seen.len() as u64 + 1;
                if reader.is_none() || world.roll(4) == 0 {
                    reader = Some(Reader::open(bucket.clone(), GROUP, from).await.unwrap());
                }
                match reader.as_mut().unwrap().next().await {
                    Ok(Found::Batches(batches)) => seen.extend(batches),
                    Ok(Found::Nothing) => {}
                    Err(error) => {
                        let base = Base::newest(&*bucket, GROUP).await.unwrap();
                        let lags = base.is_some_and(|base| base.after.number >= from);
                        assert!(lags, "seed {seed}: {error}");
                        // It begins anew.
                        seen = whole_chain(&bucket, &made_ever, seed).await;
                        reader = None;
                    }
                }
            }
            3..9 if !shippers.is_empty() => {
                let at = world.roll(shippers.len());
                let shipper = &mut shippers[at];
                if shipper.window.len() < FLYING_MAX {
                    for _ in 0..=world.roll(2) {
                        let after = shipper.writer.after();
                        let heal = (after.number == 0).then_some(Control::Heal);
                        let sealed = batch(after, shipper.session, heal);
                        made_ever.insert(sealed.hash, sealed.bytes.clone().into());
                        shipper.writer.push(&sealed);
                    }
                    let made = shipper.writer.make().unwrap();
                    let mut flying = world.flying.lock().unwrap();
                    shipper.window.push_back(flying.len());
                    flying.push(Flying { made, landed: None });
                }
            }
            9..14 => world.land_some(),
            _ if !shippers.is_empty() => {
                let at = world.roll(shippers.len());
                if !hear(&world, &mut shippers[at], &mut acked, seed) {
                    shippers.remove(at);
                }
            }
            _ => {}
        }
    }
    let all = whole_chain(&bucket, &made_ever, seed).await;
    assert_eq!(seen, all[..seen.len()], "seed {seed}: a reader saw what is not so in the end");
    let mut stream = Stream::default();
    for bytes in &all {
        let keys = crate::batch::Keyring::default();
        let opened = crate::batch::Batch::open(bytes.to_vec(), &keys).unwrap();
        stream = stream.follow(GROUP, &opened.view()).unwrap_or_else(|refusal| {
            panic!("seed {seed}: the chain is broken: {}", refusal.message)
        });
        if let Some(hash) = acked.remove(&stream.number) {
            assert_eq!(hash, stream.hash, "seed {seed}: batch {} was another", stream.number);
        }
    }
    assert!(acked.is_empty(), "seed {seed}: acknowledged and gone: {acked:?}");
    (all.len(), sessions, Base::generations(&*bucket).await.unwrap())
}

/// The shipper hears what became of its oldest object; false when it was taken over.
fn hear(
    world: &World,
    shipper: &mut Shipper,
    acked: &mut BTreeMap<u64, crate::BatchHash>,
    seed: u64,
) -> bool {
    while let Some(at) = shipper.window.front().copied() {
        let (landed, after) = {
            let flying = &world.flying.lock().unwrap()[at];
            (flying.landed, flying.made.after.clone())
        };
        match landed {
            None => return true,
            Some(false) => return false,
            Some(true) => {
                shipper.window.pop_front();
                let before = acked.insert(after.number, after.hash);
                assert!(before.is_none_or(|hash| hash == after.hash), "seed {seed}: two of them");
            }
        }
    }
    true
}

#[tokio::test]
async fn what_was_acknowledged_stays_whoever_dies_lives_on_or_writes_late() {
    let (mut batches, mut sessions, mut bases) = (0, 0, 0);
    for seed in 0..400 {
        let (read, taken, made) = history(seed).await;
        batches += read;
        sessions += taken;
        bases += made;
    }
    assert!(
        batches > 4000 && sessions > 1000 && bases > 400,
        "{batches} batches, {sessions} sessions, {bases} bases: too tame"
    );
}
