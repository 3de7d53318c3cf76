//! What a script returns.

use std::time::Duration;

use crate::store::{Current, Publish, StoreError, Value, Version};

/// What a script returns: a list of strings.
pub(super) struct Reply(pub(super) std::vec::IntoIter<Vec<u8>>);

impl Reply {
    pub(super) fn strange() -> StoreError {
        StoreError::new("the script returned something that it never returns")
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        self.0.next().ok_or_else(Self::strange)
    }

    pub(super) fn word(&mut self) -> Result<String, StoreError> {
        String::from_utf8(self.bytes()?).map_err(|_| Self::strange())
    }

    pub(super) fn number(&mut self) -> Result<u64, StoreError> {
        self.word()?.parse().map_err(|_| Self::strange())
    }

    pub(super) fn duration(&mut self) -> Result<Duration, StoreError> {
        Ok(Duration::from_micros(self.number()?))
    }

    pub(super) fn tag(&mut self) -> Result<Option<String>, StoreError> {
        let is_there = self.number()? == 1;
        // Of bytes that are no text there is nothing to be made by any builder; the next publication replaces them.
        let tag = String::from_utf8_lossy(&self.bytes()?).into_owned();
        Ok(is_there.then_some(tag))
    }

    pub(super) fn current(mut self) -> Result<Current, StoreError> {
        match &*self.word()? {
            "nothing" => Ok(Current::Nothing { cleared: self.number()? == 1 }),
            "same" => Ok(Current::Same { soft_left: self.duration()?, hard_left: self.duration()? }),
            "newer" => Ok(Current::Newer(Value {
                version: Version { incarnation: self.number()?, number: self.number()? },
                payload: self.bytes()?,
                tag: self.tag()?,
                age: self.duration()?,
                soft_left: self.duration()?,
                hard_left: self.duration()?,
            })),
            _ => Err(Self::strange()),
        }
    }

    pub(super) fn published(&mut self) -> Result<Publish, StoreError> {
        match &*self.word()? {
            "stored" => Ok(Publish::Stored(Version { incarnation: self.number()?, number: self.number()? })),
            "superseded" => Ok(Publish::Superseded),
            "invalidated" => Ok(Publish::Invalidated),
            _ => Err(Self::strange()),
        }
    }
}
