//! What a user can do where the system refuses a port, a file or a directory.

use std::{fmt::Display, io};

/// An error that says what was tried, why it failed, and for want of a right, what to do.
pub(crate) fn refused(error: io::Error, tried: impl Display, to_do: &str) -> anyhow::Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        anyhow::anyhow!("{tried}: {error}; {to_do}")
    } else {
        anyhow::Error::new(error).context(tried.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_for_a_missing_right_alone() {
        let say =
            |kind: io::ErrorKind| format!("{:#}", refused(kind.into(), "cannot listen", "be root"));
        assert_eq!(
            say(io::ErrorKind::PermissionDenied),
            "cannot listen: permission denied; be root"
        );
        assert_eq!(
            say(io::ErrorKind::AddrInUse),
            "cannot listen: address in use"
        );
    }
}
