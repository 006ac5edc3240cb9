//! Asks the endpoint for its models before a run, so that a wrong address, key or name is told at once.

use hyper::StatusCode;
use hyper_util::client::legacy::connect::Connect;
use serde::Deserialize;

use crate::client::{Client, said};
use crate::error::Error;

#[derive(Deserialize)]
struct List {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// Checks that the endpoint answers and serves `model`. One that has no list of models passes.
pub(crate) async fn check<C>(client: &Client<C>, model: &str) -> Result<(), Error>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let url = client.models_uri().to_string();
    let (status, body) = match client.models().await {
        Ok(answer) => answer,
        Err(failure) => return Err(Error::Unreachable { url, failure }),
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(Error::Unauthorized { url, status: status.as_u16(), message: said(&body) });
        }
        StatusCode::OK => {}
        _ => return Ok(()),
    }
    let Ok(List { data }) = serde_json::from_slice(&body) else { return Ok(()) };
    if data.iter().any(|served| served.id == model) {
        return Ok(());
    }
    Err(Error::Model {
        url,
        model: model.to_owned(),
        served: data.into_iter().map(|model| model.id).collect(),
    })
}
