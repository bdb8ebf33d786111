//! Says which device has a name now, for callers that keep it.

use crate::{
    Error, Identity, InterfaceName, Netns,
    inquiry::Inquiry,
    machine::{Answer, Question},
};

/// Tells the devices of a network namespace from outside, by [`Identity`].
///
/// An engine that was restarted knows by it whether the interface is still the one that it left: it
/// keeps the identity and hands it to [`Target::expect`](crate::Target::expect) at its next start.
/// Keeps the namespace alive.
#[derive(Debug)]
pub struct Inspector(Inquiry);

impl Inspector {
    /// Looks into a namespace. Takes CAP_SYS_ADMIN to see inode numbers in another namespace than
    /// the one in which `/sys` was mounted; without it there are none there.
    ///
    /// # Errors
    /// [`Error::Recheck`] when the kernel cannot be asked.
    pub fn new(netns: &Netns) -> Result<Self, Error> {
        let mut inquiry = Inquiry::new(netns).map_err(Error::Recheck)?;
        inquiry.open_sysfs().map_err(Error::Recheck)?;
        Ok(Self(inquiry))
    }

    /// The device that has this name now. It may have lost it by the time that this returns.
    ///
    /// # Errors
    /// [`Error::Recheck`] when the kernel does not answer.
    pub fn identity(&mut self, name: InterfaceName) -> Result<Option<Identity>, Error> {
        let Self(inquiry) = self;
        if let Answer::Identity(Ok(Some(found))) = inquiry.answer(Question::IdentityOf(name)) {
            return Ok(Some(found));
        }
        // There is none, or no sysfs that shows it.
        match inquiry.answer(Question::IndexOf(name)) {
            Answer::Index(found) => Ok(found.map_err(Error::Recheck)?.map(Identity::of_ifindex)),
            _ => Ok(None),
        }
    }
}
