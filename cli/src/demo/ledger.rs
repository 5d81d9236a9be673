//! A small database inside the guest's file system, with the write pattern of
//! SQLite's rollback journal: old pages to a journal file, fsync, pages in place,
//! fsync, journal removed, directory fsync. Beside it a file is replaced by
//! rename now and then, as programs save their settings.
//!
//! Each page names the transaction that wrote it, so that a copy of the file
//! system shows by itself whether it holds every committed transaction.

use anyhow::{Context, bail, ensure};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PAGE_BYTES: usize = 4096;

/// Pages of the database: 2 MiB, so that transactions overlap soon.
const PAGES: u64 = 512;

/// Pages that one transaction changes.
const PAGES_A_TRANSACTION: u64 = 5;

/// Every so many transactions a file is saved by rename.
const SAVE_EVERY: u64 = 8;

/// Names of saved files in use at a time.
const SAVED_FILES: u64 = 16;

const DATABASE: &str = "ledger.db";
const JOURNAL: &str = "ledger.db-journal";

pub struct Ledger {
    dir: PathBuf,
    database: File,
    /// The transaction that last wrote each page; 0 is the empty page.
    owners: Vec<u64>,
    committed: u64,
}

impl Ledger {
    /// Creates an empty database in `dir`, which must not have one.
    pub fn create(dir: &Path) -> anyhow::Result<Ledger> {
        let database = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.join(DATABASE))
            .with_context(|| format!("cannot create the guest's database in {}", dir.display()))?;
        let mut ledger =
            Ledger { dir: dir.to_owned(), database, owners: vec![0; PAGES as usize], committed: 0 };
        for page in 0..PAGES {
            ledger.write_page(page, 0)?;
        }
        ledger.database.sync_all()?;
        sync_dir(dir)?;
        Ok(ledger)
    }

    /// Runs the next transaction to its durable end.
    pub fn commit(&mut self) -> anyhow::Result<u64> {
        let transaction = self.committed + 1;
        let pages = pages_of(transaction);
        self.write_journal(&pages)?;
        for page in &pages {
            self.write_page(*page, transaction)?;
        }
        self.database.sync_data().context("the guest's fsync of its database failed")?;
        std::fs::remove_file(self.dir.join(JOURNAL))?;
        sync_dir(&self.dir)?;
        if transaction.is_multiple_of(SAVE_EVERY) {
            self.save(transaction)?;
        }
        for page in pages {
            self.owners[page as usize] = transaction;
        }
        self.committed = transaction;
        Ok(transaction)
    }

    fn write_journal(&self, pages: &[u64]) -> anyhow::Result<()> {
        let journal =
            File::create(self.dir.join(JOURNAL)).context("cannot create the guest's journal")?;
        for (slot, page) in pages.iter().enumerate() {
            let old = encode(*page, self.owners[*page as usize]);
            journal.write_all_at(&old, (slot * PAGE_BYTES) as u64)?;
        }
        journal.sync_all().context("the guest's fsync of its journal failed")?;
        sync_dir(&self.dir)
    }

    fn write_page(&mut self, page: u64, transaction: u64) -> anyhow::Result<()> {
        self.database
            .write_all_at(&encode(page, transaction), page * PAGE_BYTES as u64)
            .context("the guest's write to its database failed")
    }

    fn save(&self, transaction: u64) -> anyhow::Result<()> {
        let draft = self.dir.join("settings.tmp");
        let saved = self.dir.join(format!("settings-{}", transaction / SAVE_EVERY % SAVED_FILES));
        std::fs::write(&draft, format!("saved by transaction {transaction}\n").repeat(64))?;
        File::open(&draft)?.sync_all()?;
        std::fs::rename(&draft, &saved)?;
        sync_dir(&self.dir)
    }
}

/// Checks the database in `dir` as a program would that opens it after a crash,
/// and returns the number of the last transaction that is whole in it.
///
/// # Errors
/// A page is damaged, a transaction is there in part, or one of the first
/// `committed` transactions is missing.
pub fn verify(dir: &Path, committed: u64) -> anyhow::Result<u64> {
    let path = dir.join(DATABASE);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.len() == PAGES as usize * PAGE_BYTES, "{} has a wrong size", path.display());
    let mut owners = Vec::with_capacity(PAGES as usize);
    for (page, bytes) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
        owners.push(decode(page as u64, bytes)?);
    }
    for (page, owner) in rollback(dir)? {
        owners[page as usize] = owner;
    }
    let last = owners.iter().copied().max().unwrap_or(0);
    ensure!(
        last >= committed,
        "transaction {committed} was committed, but {last} is the last one there"
    );
    ensure!(
        last <= committed + 1,
        "transaction {last} is there, but {committed} was the last committed"
    );
    let wanted = owners_after(last);
    for (page, (found, wanted)) in owners.iter().zip(&wanted).enumerate() {
        ensure!(found == wanted, "page {page} is of transaction {found}, not {wanted}");
    }
    Ok(last)
}

/// What an unfinished transaction's journal restores. A journal that is not whole
/// restores nothing: the database was not touched before it was durable.
fn rollback(dir: &Path) -> anyhow::Result<Vec<(u64, u64)>> {
    let bytes = match std::fs::read(dir.join(JOURNAL)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("cannot read the guest's journal")?,
    };
    if bytes.len() != PAGES_A_TRANSACTION as usize * PAGE_BYTES {
        return Ok(Vec::new());
    }
    let old = bytes
        .chunks_exact(PAGE_BYTES)
        .map(|bytes| Ok((number(bytes, 0), decode(number(bytes, 0), bytes)?)));
    let old: anyhow::Result<Vec<_>> = old.collect();
    Ok(old.unwrap_or_default().into_iter().filter(|(page, _)| *page < PAGES).collect())
}

fn owners_after(last: u64) -> Vec<u64> {
    let mut owners = vec![0; PAGES as usize];
    for transaction in 1..=last {
        for page in pages_of(transaction) {
            owners[page as usize] = transaction;
        }
    }
    owners
}

/// Distinct pages, scattered and the same for everybody who asks.
fn pages_of(transaction: u64) -> Vec<u64> {
    let start = mix(transaction) % PAGES;
    let stride = (mix(transaction ^ 0x5eed) % (PAGES / 2)) | 1;
    (0..PAGES_A_TRANSACTION).map(|i| (start + i * stride) % PAGES).collect()
}

fn encode(page: u64, transaction: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    bytes[..8].copy_from_slice(&page.to_le_bytes());
    bytes[8..16].copy_from_slice(&transaction.to_le_bytes());
    let mut state = mix(page ^ transaction.rotate_left(32));
    for word in bytes[16..].chunks_exact_mut(8) {
        state = mix(state);
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The transaction that wrote these bytes as `page`.
fn decode(page: u64, bytes: &[u8]) -> anyhow::Result<u64> {
    let transaction = number(bytes, 8);
    if number(bytes, 0) == page && bytes == encode(page, transaction) {
        return Ok(transaction);
    }
    bail!("page {page} of the guest's database is damaged")
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// SplitMix64's finaliser: every bit of the input reaches every bit of the result.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .context("the guest's fsync of its directory failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::create(dir.path()).unwrap();
        for _ in 0..20 {
            ledger.commit().unwrap();
        }
        (dir, ledger)
    }

    #[test]
    fn a_whole_database_verifies_at_its_last_commit() {
        let (dir, ledger) = filled();
        assert_eq!(verify(dir.path(), ledger.committed).unwrap(), 20);
    }

    #[test]
    fn a_lost_commit_is_found() {
        let (dir, _ledger) = filled();
        assert!(verify(dir.path(), 21).unwrap_err().to_string().contains("21"));
    }

    #[test]
    fn a_lost_page_write_is_found() {
        let (dir, mut ledger) = filled();
        let page = pages_of(20)[2];
        ledger.write_page(page, 1).unwrap();
        assert!(verify(dir.path(), 20).is_err());
    }

    #[test]
    fn a_torn_page_is_found() {
        let (dir, ledger) = filled();
        ledger.database.write_all_at(b"torn", PAGE_BYTES as u64 + 100).unwrap();
        assert!(verify(dir.path(), 20).unwrap_err().to_string().contains("page 1 "));
    }

    #[test]
    fn an_unfinished_transaction_is_rolled_back_by_its_journal() {
        let (dir, mut ledger) = filled();
        ledger.write_journal(&pages_of(21)).unwrap();
        ledger.write_page(pages_of(21)[0], 21).unwrap();
        assert_eq!(verify(dir.path(), 20).unwrap(), 20);
    }

    #[test]
    fn a_torn_journal_restores_nothing() {
        let (dir, ledger) = filled();
        ledger.write_journal(&pages_of(21)).unwrap();
        let journal = OpenOptions::new().write(true).open(dir.path().join(JOURNAL)).unwrap();
        journal.set_len(100).unwrap();
        assert_eq!(verify(dir.path(), 20).unwrap(), 20);
    }
}
