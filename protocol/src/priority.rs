//! [`Priority`]: which of several downloads goes to an origin first, and whether it goes there at all.

/// A download's level, with Dragonfly's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Priority(u8);

impl Priority {
    /// LEVEL0 to LEVEL6; `None` for other numbers.
    pub fn level(number: u32) -> Option<Self> {
        u8::try_from(number).ok().filter(|level| *level <= 6).map(Self)
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// LEVEL1: such a download is refused.
    pub const fn is_forbidden(self) -> bool {
        self.0 == 1
    }

    /// LEVEL2: such a download has what others have, and does not go to the origin.
    pub const fn is_from_peers_only(self) -> bool {
        self.0 == 2
    }

    /// Its place in a line, 0 first: LEVEL6, LEVEL5, then LEVEL4 and those that say nothing, then LEVEL3.
    pub const fn rank(self) -> u8 {
        match self.0 {
            6 => 0,
            5 => 1,
            0 | 4 => 2,
            _ => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_levels_go_first_and_whoever_says_nothing_in_the_middle() {
        let rank = |number| Priority::level(number).unwrap().rank();
        assert!(rank(6) < rank(5) && rank(5) < rank(4) && rank(4) < rank(3));
        assert_eq!(rank(0), rank(4));
        assert_eq!(Priority::default().number(), 0);
        assert_eq!(Priority::level(7), None);
    }
}
