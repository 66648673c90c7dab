//! `/docs`: Swagger UI over the description, out of the binary; nothing is loaded from elsewhere.

use axum::Router;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::types::paths;

const PATH: &str = "/docs";

pub(super) fn with<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router.merge(SwaggerUi::new(PATH).config(Config::from(paths::OPENAPI)))
}
