//! How far something is, on one line.

/// A bar and the percentage that it shows.
pub(crate) fn bar(done: u64, total: u64) -> String {
    let (total, done) = (u128::from(total.max(1)), u128::from(done.min(total.max(1))));
    let full = usize::try_from(done * BAR_WIDTH as u128 / total).unwrap_or(BAR_WIDTH);
    let percent = done * 100 / total;
    format!(
        "[{}{}] {percent} %",
        "#".repeat(full),
        ".".repeat(BAR_WIDTH - full)
    )
}

const BAR_WIDTH: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_is_as_full_as_the_percentage_says() {
        assert_eq!(bar(0, 0), "[........................] 0 %");
        assert_eq!(bar(1, 2), "[############............] 50 %");
        assert_eq!(bar(9, 2), "[########################] 100 %");
    }
}
