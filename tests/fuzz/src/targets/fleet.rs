//! What dispatchers and workers say to each other.

use flotilla_protocol::assignment::{AssignReply, Assignment, Control, ControlReply, Done};
use flotilla_protocol::fleet::{Registration, Report};
use flotilla_protocol::weights::{Claim, CopyAsk, CopyHave, CopyNews, CopyReply, Holding};

use super::messages::internal;
use crate::target::Target;

pub(super) fn targets() -> Vec<Target> {
    vec![
        internal::<Assignment>("assignment", &["assignment"]),
        internal::<AssignReply>("assign-reply", &["assign-reply"]),
        internal::<Done>("done", &["done"]),
        internal::<Control>(
            "control",
            &[
                "control-load",
                "control-unload",
                "control-drain",
                "control-report",
            ],
        ),
        internal::<ControlReply>("control-reply", &["control-reply"]),
        internal::<Registration>("registration", &["registration"]),
        internal::<Report>("report", &["report"]),
        internal::<Holding>("holding", &["holding"]),
        internal::<Claim>("claim", &["claim"]),
        internal::<CopyAsk>("copy-ask", &["copy-ask"]),
        internal::<CopyReply>("copy-reply", &["copy-reply"]),
        internal::<CopyNews>("copy-news", &["copy-news"]),
        internal::<CopyHave>("copy-have", &["copy-have"]),
    ]
}
