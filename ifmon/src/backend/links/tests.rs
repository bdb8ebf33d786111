//! What one message means; what many do is in `subscription/tests.rs`.

use super::*;
use crate::NetnsId;

/// A host without links.
struct Empty;

impl Host for Empty {
    fn by_name(&mut self, _: &InterfaceName) -> io::Result<Option<u32>> {
        Ok(None)
    }

    fn by_index(&mut self, _: u32) -> io::Result<Option<InterfaceName>> {
        Ok(None)
    }

    fn inode(&mut self, _: &InterfaceName) -> Option<u64> {
        None
    }

    fn namespace(&mut self, _: i32) -> Option<NetnsId> {
        None
    }
}

/// A host whose device 7 takes this name between two questions.
struct Returning(InterfaceName);

impl Host for Returning {
    fn by_index(&mut self, ifindex: u32) -> io::Result<Option<InterfaceName>> {
        Ok((ifindex == 7).then_some(self.0))
    }

    fn by_name(&mut self, name: &InterfaceName) -> io::Result<Option<u32>> {
        Empty.by_name(name)
    }

    fn inode(&mut self, name: &InterfaceName) -> Option<u64> {
        Empty.inode(name)
    }

    fn namespace(&mut self, nsid: i32) -> Option<NetnsId> {
        Empty.namespace(nsid)
    }
}

fn name(name: &str) -> InterfaceName {
    InterfaceName::new(name).expect("a valid name")
}

fn new(ifindex: u32, name: InterfaceName) -> LinkMessage {
    LinkMessage::New { ifindex, name }
}

fn watching(name: InterfaceName) -> Links {
    let mut links = Links::new(NetnsId(1));
    links.join_all(&[name]);
    links
}

/// After a loss it can be another device's name: the device was deleted, and one with its index made. That is no rename.
#[test]
fn another_name_after_a_loss_is_left_to_the_look_up() -> io::Result<()> {
    let watched = name("wg0");
    let mut links = watching(watched);
    let Meaning { took, .. } = links.message(&new(7, watched), &mut Empty);
    assert!(took.is_some());

    links.look(watched, &mut Empty)?;
    assert!(links.is_settled(watched));
    let other = new(7, name("wg1"));
    assert_eq!(links.doubt(&new(7, watched)), None);
    assert_eq!(links.doubt(&other), Some(vec![watched]));
    assert!(!links.is_settled(watched), "what was looked up is older");
    assert_eq!(links.holder(watched).map(|device| device.ifindex), Some(7));

    // Without a loss it is a rename.
    assert!(links.message(&other, &mut Empty).left.is_some());
    Ok(())
}

/// Asked for by name it was away, asked for by index it has the name again: that is no rename.
#[test]
fn a_device_that_comes_back_while_it_is_looked_up_is_there() -> io::Result<()> {
    let watched = name("wg0");
    let mut links = watching(watched);
    links.message(&new(7, watched), &mut Empty);
    let Look { found, away, .. } = links.look(watched, &mut Returning(watched))?;
    assert_eq!((found, away), (Some(7), None));
    let Look { found, away, .. } = links.look(watched, &mut Returning(name("old0")))?;
    assert_eq!((found, away), (None, Some((name("old0"), None))));
    Ok(())
}

/// Two devices never have one name: how the first lost it was not heard.
#[test]
fn a_name_that_its_holder_never_left_shows_a_gap() {
    let watched = name("wg0");
    let mut links = watching(watched);
    let gap = |links: &mut Links, ifindex| {
        let Meaning { left, took } = links.message(&new(ifindex, watched), &mut Empty);
        assert_eq!(left, None);
        took.map(|taken| taken.gap)
    };
    assert_eq!(gap(&mut links, 7), Some(false));
    assert_eq!(gap(&mut links, 8), Some(true));
    assert_eq!(gap(&mut links, 8), None);
}

/// The filter may not know the index yet when a device is renamed, and drops that; the deletion says its last name.
#[test]
fn a_rename_that_was_not_heard_shows_in_the_deletion() {
    let watched = name("wg0");
    let left_to = |last| {
        let mut links = watching(watched);
        links.message(&new(7, watched), &mut Empty);
        let deleted = LinkMessage::Deleted {
            ifindex: 7,
            name: last,
            moved: None,
        };
        match links.message(&deleted, &mut Empty).left {
            Some(Change::Left { to, .. }) => to.map(|place| place.name),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(left_to(watched), None);
    assert_eq!(left_to(name("old0")), Some(Some(name("old0"))));
}

/// It is looked up under two watched names while it is renamed from one to the other and back, by way of a third.
#[test]
fn a_device_is_called_what_it_was_found_under_last() {
    let (first, second, third) = (name("wg0"), name("wg1"), name("wg2"));
    let mut links = watching(first);
    links.join_all(&[second]);
    let inode = NonZeroU64::new(1);
    let here = Look {
        found: Some(7),
        inode,
        away: None,
    };
    let gone = Look {
        away: Some((third, inode)),
        ..Look::default()
    };
    links.message(&new(7, first), &mut Empty);
    links.enter(first, &here);
    links.enter(second, &here);
    links.enter(first, &gone);
    links.enter(second, &here);
    let deleted = LinkMessage::Deleted {
        ifindex: 7,
        name: second,
        moved: None,
    };
    let Meaning { left, took } = links.message(&deleted, &mut Empty);
    assert!(
        matches!(left, Some(Change::Left { watch, to: None, .. }) if watch.name == second),
        "{left:?}"
    );
    assert_eq!(took, None);
}
