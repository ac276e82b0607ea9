//! A collector: a web server that takes OTLP, read with the types that OpenTelemetry generates.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use flotilla_tests::eventually;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How a collector answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// At once.
    Prompt,
    /// Never.
    Silent,
}

/// A running collector; it ends when it is dropped.
#[derive(Debug)]
pub struct Collector {
    port: u16,
    taken: Arc<Mutex<Vec<Taken>>>,
    task: JoinHandle<()>,
}

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Of the process that made it.
    pub resource: Vec<KeyValue>,
    /// The header `x-team` of the export.
    pub team: Option<String>,
    /// The span.
    pub span: Span,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    /// Begins to take spans.
    pub async fn start(manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let taken = Arc::new(Mutex::default());
        let shared = Arc::clone(&taken);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { answer(stream, manner, &shared).await });
            }
        });
        Ok(Self { port, taken, task })
    }

    /// The setting that has a fleet send its spans here.
    pub fn setting(&self) -> String {
        format!("telemetry.otlp.endpoint=http://127.0.0.1:{}", self.port)
    }

    /// All that came.
    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().expect("no handler panics").clone()
    }

    /// All that came, once it is what is wanted.
    pub async fn until(&self, what: &str, is_whole: impl Fn(&[Taken]) -> bool) -> Vec<Taken> {
        eventually(what, async || {
            let taken = self.taken();
            is_whole(&taken).then_some(taken)
        })
        .await
    }
}

impl Taken {
    /// An attribute of the span, as text.
    pub fn attribute(&self, name: &str) -> Option<String> {
        find(&self.span.attributes, name)
    }

    /// The service that made it.
    pub fn service(&self) -> Option<String> {
        find(&self.resource, "service.name")
    }

    /// Why it failed.
    pub fn error(&self) -> Option<&str> {
        let status = self.span.status.as_ref()?;
        (status.code == STATUS_ERROR).then_some(status.message.as_str())
    }

    /// Its trace, in hexadecimal digits.
    pub fn trace_id(&self) -> String {
        self.span
            .trace_id
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

fn find(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    Some(told(found.value.as_ref()?))
}

fn told(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(Value::ArrayValue(array)) => array.values.iter().map(told).collect::<Vec<_>>().join(","),
        other => panic!("{other:?} is not of ours"),
    }
}

/// Answers the exports of one connection.
async fn answer(stream: TcpStream, manner: Manner, taken: &Mutex<Vec<Taken>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut length, mut team) = (0, None);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        assert!(
            line.is_empty() || line.starts_with("POST /v1/traces HTTP/1.1"),
            "{line}"
        );
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse()?,
                "content-type" => assert_eq!(value, "application/x-protobuf"),
                "x-team" => team = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        if manner == Manner::Silent {
            return std::future::pending().await;
        }
        take(&body, team.as_deref(), taken)?;
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        stream.get_mut().write_all(head).await?;
    }
}

fn take(body: &[u8], team: Option<&str>, taken: &Mutex<Vec<Taken>>) -> Result<()> {
    let export = ExportTraceServiceRequest::decode(body).context("an export")?;
    let mut all = taken.lock().expect("no handler panics");
    for of_process in export.resource_spans {
        let resource = of_process.resource.context("a resource")?.attributes;
        let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
        all.extend(spans.map(|span| Taken {
            resource: resource.clone(),
            team: team.map(str::to_owned),
            span,
        }));
    }
    Ok(())
}

const STATUS_ERROR: i32 = 2;
