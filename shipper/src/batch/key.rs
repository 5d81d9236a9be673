//! Keys of sealed batches, and what is derived from them.
//!
//! A group key never lies beside the data: a batch names it by an id and carries a fresh
//! random salt; HKDF-SHA256 makes the one key for that one batch. A batch that is cut
//! anew after a crash has a new salt, so no key ever meets two plain texts.

use crate::error::{Error, ErrorKind, Result};
pub use crate::ids::KeyId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use std::collections::BTreeMap;
use std::fmt;

pub const KEY_BYTES: usize = 32;
pub const KEY_ID_BYTES: usize = 16;
pub const SALT_BYTES: usize = 32;
/// AES-256-GCM's tag, the last bytes of a sealed batch.
pub const TAG_BYTES: usize = 16;

/// What a derived key is for; another format gets another key from the same secret.
const PURPOSE: &[u8] = b"towline batch 2 aes-256-gcm";

/// How a key's id follows from its secret.
const ID_PURPOSE: &[u8] = b"towline key id 1";

/// A secret of 32 random bytes. Never printed.
#[derive(Clone)]
pub struct GroupKey {
    pub id: KeyId,
    secret: [u8; KEY_BYTES],
}

impl GroupKey {
    /// `id` must not be all zero: that is "not sealed".
    pub fn new(id: KeyId, secret: [u8; KEY_BYTES]) -> Result<GroupKey> {
        if id.0 == [0; KEY_ID_BYTES] {
            return Err(Error::new(ErrorKind::InvalidInput, "a key's id is not all zero"));
        }
        Ok(GroupKey { id, secret })
    }

    /// The key whose id follows from the secret, as in key files: no two secrets meet
    /// under one id.
    pub fn of_secret(secret: [u8; KEY_BYTES]) -> Result<GroupKey> {
        let broken = |_| Error::new(ErrorKind::InvalidInput, "a key's id cannot be derived");
        let extracted = Salt::new(HKDF_SHA256, &[]).extract(&secret);
        let derived = extracted.expand(&[ID_PURPOSE], HKDF_SHA256).map_err(broken)?;
        let mut bytes = [0; KEY_BYTES];
        derived.fill(&mut bytes).map_err(broken)?;
        let mut id = KeyId::default();
        id.0.copy_from_slice(&bytes[..KEY_ID_BYTES]);
        GroupKey::new(id, secret)
    }

    /// The key of one batch.
    fn of_batch(&self, salt: &[u8; SALT_BYTES]) -> Result<LessSafeKey> {
        let broken = |_| Error::new(ErrorKind::InvalidInput, "a key cannot be derived");
        let extracted = Salt::new(HKDF_SHA256, salt).extract(&self.secret);
        let info = [PURPOSE, &self.id.0];
        let derived = extracted.expand(&info, &AES_256_GCM).map_err(broken)?;
        Ok(LessSafeKey::new(UnboundKey::from(derived)))
    }

    /// Encrypts `body` in place; `header` is authenticated with it.
    pub(crate) fn seal(
        &self,
        salt: &[u8; SALT_BYTES],
        header: &[u8],
        body: &mut [u8],
    ) -> Result<[u8; TAG_BYTES]> {
        let key = self.of_batch(salt)?;
        let tag = key
            .seal_in_place_separate_tag(only_nonce(), Aad::from(header), body)
            .map_err(|_| Error::new(ErrorKind::InvalidInput, "a batch cannot be sealed"))?;
        let mut out = [0; TAG_BYTES];
        out.copy_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Decrypts `body` in place.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when header, body or tag are not what was sealed with this key.
    pub(crate) fn open(
        &self,
        salt: &[u8; SALT_BYTES],
        header: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<()> {
        let key = self.of_batch(salt)?;
        let tag = Tag::from(*tag);
        key.open_in_place_separate_tag(only_nonce(), Aad::from(header), tag, body, 0..)
            .map(|_| ())
            .map_err(|_| Error::damaged("the seal of the batch does not match"))
    }
}

/// A derived key encrypts one text, so its nonce need not differ.
fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupKey({:?}, secret)", self.id)
    }
}

/// The keys a reader has: the one in use and those before it.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: BTreeMap<KeyId, GroupKey>,
    newest: Option<KeyId>,
}

impl Keyring {
    pub fn add(&mut self, key: GroupKey) {
        self.newest = Some(key.id);
        self.keys.insert(key.id, key);
    }

    /// The key that was added last: what is sealed, is sealed with it.
    pub fn newest(&self) -> Option<&GroupKey> {
        self.keys.get(&self.newest?)
    }

    pub fn ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys.keys().copied()
    }

    /// # Errors
    /// [`ErrorKind::NotAuthorised`] when the key is not here.
    pub fn get(&self, id: KeyId) -> Result<&GroupKey> {
        self.keys.get(&id).ok_or_else(|| {
            let what = format!(
                "sealed with key {id}, which is not here: give the key file that holds it (--key FILE)"
            );
            Error::new(ErrorKind::NotAuthorised, what)
        })
    }
}
