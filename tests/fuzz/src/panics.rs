//! What a panic said, without a line on the terminal for each.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Runs a call that may panic; then its words and place. Panics that the call itself catches are counted.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> (Result<T, String>, usize) {
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let noted = HEARD.with_borrow_mut(|heard| {
                let heard = heard.as_mut()?;
                heard.push(panic.to_string());
                Some(())
            });
            if noted.is_none() {
                usual(panic);
            }
        }));
    });
    HEARD.set(Some(Vec::new()));
    let outcome = catch_unwind(AssertUnwindSafe(call));
    let mut heard = HEARD.take().unwrap_or_default();
    match outcome {
        Ok(value) => (Ok(value), heard.len()),
        Err(_panic) => {
            let last = heard.pop().unwrap_or_default();
            (Err(last), heard.len())
        }
    }
}

static HOOK: Once = Once::new();

thread_local! {
    /// Panics of the call under way.
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}
