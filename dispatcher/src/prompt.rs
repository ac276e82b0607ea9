//! How many tokens a prompt has, by the model's own tokenizer where its files can be read here.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use flotilla_dispatcher_core::PromptCount;
use flotilla_prompt::{ModelBounds, PromptMaker, check_format, text_bytes};
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::event::RequestError;
use flotilla_protocol::request::{InferenceRequest, Input, ResponseFormat};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::error::chain;

/// The text side of one model, opened by whoever needs it first; clones share it. Files that do not come in time hold up
/// nobody after that, and are used when they are there. Only another catalog entry makes a folder tried again that cannot be
/// used.
#[derive(Debug, Clone, Default)]
pub(crate) struct TextCell {
    opening: Arc<OnceLock<Opening>>,
}

#[derive(Debug)]
struct Opening {
    begun: Instant,
    opened: watch::Receiver<Option<Opened>>,
    told_late: AtomicBool,
}

/// `None` of a folder that cannot be used here.
type Opened = Option<Arc<PromptMaker>>;

/// Tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PromptTokens {
    /// By the model's tokenizer.
    Counted(u32),
    /// From the bytes: good for ranking, no ground for a refusal.
    Estimated(u32),
}

impl PromptTokens {
    /// How they are known.
    pub(crate) fn count(self) -> PromptCount {
        match self {
            Self::Counted(_) => PromptCount::Counted,
            Self::Estimated(_) => PromptCount::Estimated,
        }
    }

    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Counted(tokens) | Self::Estimated(tokens) => tokens,
        }
    }
}

/// Checks a prompt and counts its tokens. Of a long one, or one whose answer is to be of a schema, on a thread for
/// blocking work.
///
/// # Errors
/// A [`RequestError`] that names the field when the model cannot take this prompt.
pub(crate) async fn count(
    entry: &CatalogEntry,
    text: &TextCell,
    request: InferenceRequest,
) -> Result<PromptTokens, RequestError> {
    ModelBounds::from(&entry.facts).check(&request)?;
    let request = with_checked_format(request).await?;
    if let Input::PromptTokens(tokens) = &request.input {
        return Ok(PromptTokens::Counted(number(tokens.len())));
    }
    let Some(maker) = text.maker(entry).await else {
        return Ok(estimate(&request.input));
    };
    if text_bytes(&request.input) <= INLINE_BYTES_MAX {
        return count_with(&maker, &request);
    }
    blocking(move || count_with(&maker, &request)).await
}

/// The request back, if answers of its schema can be made.
async fn with_checked_format(request: InferenceRequest) -> Result<InferenceRequest, RequestError> {
    match request.response_format {
        ResponseFormat::Text | ResponseFormat::JsonObject => Ok(request),
        ResponseFormat::JsonSchema(_) => blocking(move || check_format(&request).map(|()| request)).await,
    }
}

/// Runs on a thread for blocking work; a panic there goes on here.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(run).await {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

impl TextCell {
    /// What makes prompts of the model, if that is known within the time that its files may take.
    async fn maker(&self, entry: &CatalogEntry) -> Opened {
        let opening = self.opening.get_or_init(|| Opening::begin(entry));
        let mut opened = opening.opened.clone();
        let in_time = timeout_at(opening.begun + OPEN_MAX, opened.wait_for(Option::is_some)).await;
        match in_time {
            Ok(Ok(opened)) => opened.clone().flatten(),
            // Reading them panicked, which the thread has told.
            Ok(Err(_)) => None,
            Err(_) => {
                if !opening.told_late.swap(true, Ordering::Relaxed) {
                    warn!(model = %entry.name, "prompt tokens are estimated: the model's text files are not read in time");
                }
                None
            }
        }
    }

    /// Whether it is the same one.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.opening, &other.opening)
    }
}

impl Opening {
    fn begin(entry: &CatalogEntry) -> Self {
        let (model, bounds) = (entry.name.clone(), ModelBounds::from(&entry.facts));
        let (tell, opened) = watch::channel(None);
        match &entry.source {
            ModelSource::Folder(folder) => {
                let folder = folder.clone();
                // A thread that waits for a disk cannot be ended; whoever waits for it does not wait for ever.
                drop(spawn_blocking(move || {
                    tell.send_replace(Some(open_folder(&model, &folder, bounds)));
                }));
            }
            // Its files are with workers only.
            ModelSource::Hub(_) => drop(tell.send_replace(Some(None))),
            ModelSource::Simulated { .. } => {
                tell.send_replace(Some(Some(Arc::new(PromptMaker::simulated(bounds)))));
            }
        }
        Self {
            begun: Instant::now(),
            opened,
            told_late: AtomicBool::new(false),
        }
    }
}

fn open_folder(model: &ModelName, folder: &Path, bounds: ModelBounds) -> Opened {
    match PromptMaker::open(folder, bounds) {
        Ok(maker) => Some(Arc::new(maker)),
        Err(error) => {
            let error = chain(&error);
            warn!(%model, error, "prompt tokens are estimated: the model's text files cannot be used here");
            None
        }
    }
}

fn count_with(maker: &PromptMaker, request: &InferenceRequest) -> Result<PromptTokens, RequestError> {
    let made = maker.make(request, SystemTime::now())?;
    Ok(PromptTokens::Counted(number(made.prompt_tokens())))
}

fn estimate(input: &Input) -> PromptTokens {
    PromptTokens::Estimated(number(text_bytes(input) / BYTES_PER_TOKEN + 1))
}

fn number(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// A prompt that is counted in less time than another thread takes to begin; tokenizers read megabytes a second.
const INLINE_BYTES_MAX: usize = 1024;
/// How long a model's text files may take to be read: a large tokenizer takes a second from a busy disk. Admissions of other
/// models may wait behind those that wait for it.
const OPEN_MAX: Duration = Duration::from_secs(5);
/// Of English prose with a vocabulary of some 100,000; others differ by a factor of two.
const BYTES_PER_TOKEN: usize = 4;

#[cfg(test)]
mod tests {
    use flotilla_protocol::Encoding;
    use flotilla_protocol::catalog::{ModelFacts, ModelTask};

    use super::*;

    fn entry(source: ModelSource) -> CatalogEntry {
        CatalogEntry {
            name: ModelName::new("m").unwrap(),
            source,
            facts: ModelFacts {
                architecture: "A".to_owned(),
                context_tokens_max: 1024,
                vocabulary_size: 32_000,
                weights_bytes: 1,
                task: ModelTask::Generate,
            },
            root: None,
            slots: None,
            keep_alive: None,
            pin: false,
            slo: None,
            quantize: None,
            policy: None,
            output_tokens_prior: None,
        }
    }

    async fn counted(source: ModelSource, body: &str) -> PromptTokens {
        let entry = entry(source);
        let request = InferenceRequest::decode(&entry.name, Encoding::Json, body.as_bytes(), 1 << 20);
        count(&entry, &TextCell::default(), request.unwrap())
            .await
            .unwrap()
    }

    /// A disk that did not answer held up all admissions, those of other models included.
    #[tokio::test(start_paused = true)]
    async fn files_that_do_not_come_are_waited_for_once_and_used_when_they_are_there() {
        let entry = entry(ModelSource::Folder("/nowhere".into()));
        let (tell, opened) = watch::channel(None);
        let text = TextCell {
            opening: Arc::new(OnceLock::from(Opening {
                begun: Instant::now(),
                opened,
                told_late: AtomicBool::new(false),
            })),
        };
        let counted = async || {
            let body = br#"{"prompt": "three short words"}"#;
            let request = InferenceRequest::decode(&entry.name, Encoding::Json, body, 1 << 20);
            count(&entry, &text, request.unwrap()).await.unwrap()
        };
        let begun = Instant::now();
        assert!(matches!(counted().await, PromptTokens::Estimated(_)));
        let waited = begun.elapsed();
        assert!(waited >= OPEN_MAX);
        assert!(matches!(counted().await, PromptTokens::Estimated(_)));
        assert_eq!(begun.elapsed(), waited, "nobody waits a second time");
        let maker = PromptMaker::simulated(ModelBounds::from(&entry.facts));
        tell.send_replace(Some(Some(Arc::new(maker))));
        assert_eq!(counted().await, PromptTokens::Counted(3));
    }

    #[tokio::test]
    async fn prompts_of_simulated_models_are_counted_as_their_workers_do_and_never_estimated() {
        let simulated = || ModelSource::Simulated {
            kv_bytes_per_token: 1,
        };
        let text = r#"{"prompt": "three short words"}"#;
        assert_eq!(counted(simulated(), text).await, PromptTokens::Counted(3));
        let tokens = r#"{"prompt": [1, 2, 3, 4, 5]}"#;
        assert_eq!(counted(simulated(), tokens).await, PromptTokens::Counted(5));
        let chat = r#"{"messages": [{"role": "user", "content": "hello"}]}"#;
        assert_eq!(
            counted(simulated(), chat).await,
            PromptTokens::Counted(4),
            "user, hello, and assistant in two pieces"
        );
        let elsewhere = ModelSource::Folder("/nowhere".into());
        assert!(matches!(
            counted(elsewhere, text).await,
            PromptTokens::Estimated(_)
        ));
    }
}
