//! Handlers of what clients of the embedded relay meet: certificates and users.

use axum::{extract::State, response::Response};
use redirect_relay::{Verifier, gateway::Secret};

use super::{
    App, blocking, change, commit,
    conditions::show,
    error::{ApiError, Code, Problem},
    extract::{Body, Key, Members, Params},
    list::{self, Form, Rows, Wanted},
    not_found, same_key,
    types::{Certificate, CertificatePut, Page, User, UserListQuery, UserPut, paths},
};
use crate::{
    clients::{self, CertificateSpec, Username},
    desired::{Invalid, Name, Time},
    limits,
    revision::{Conditions, Versioned},
    store::{self, Change, Kind, Store},
};

// Certificates

#[utoipa::path(get, path = paths::CERTIFICATES, tag = "certificates", responses((status = 200, body = Page<Versioned<Certificate>>)))]
pub(super) async fn list_certificates(State(app): App, form: Form) -> Response {
    let snapshot = app.store.snapshot();
    list::all(
        form,
        snapshot.clients.certificates.iter().map(|(name, certificate)| Versioned {
            resource: Certificate::new(name.clone(), certificate),
            revision: snapshot.revisions.of(Kind::Certificate, name),
        }),
    )
}

#[utoipa::path(get, path = paths::CERTIFICATE, tag = "certificates", params(("name" = String, Path)),
    responses((status = 200, body = Versioned<Certificate>), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_certificate(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
) -> Result<Response, ApiError> {
    let snapshot = app.store.snapshot();
    let certificate = snapshot.clients.certificates.get(&name).ok_or_else(|| not_found(Kind::Certificate, &name))?;
    let revision = snapshot.revisions.of(Kind::Certificate, &name);
    let resource = Certificate::new(name.clone(), certificate);
    show(&conditions, Kind::Certificate, &name, Versioned { resource, revision })
}

/// Sessions that begin afterwards are shown this certificate. Without a key the known one stays, if it fits.
#[utoipa::path(put, path = paths::CERTIFICATE, tag = "certificates", params(("name" = String, Path)), request_body = CertificatePut,
    responses((status = 200, body = Versioned<Certificate>), (status = 201, body = Versioned<Certificate>), (status = 400, body = Problem),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn put_certificate(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
    Body(members): Body<Members>,
) -> Result<Response, ApiError> {
    let body: CertificatePut =
        members.named(&["names", "not_before", "not_after", "revision"]).map_err(ApiError::silent_about_passwords)?;
    same_key("/name", &name, body.name.as_ref())?;
    let certificate = CertificateSpec { name: name.clone(), chain: body.chain, key: body.key };
    let done = commit(&app, conditions, Change::PutCertificate { certificate, now: Time::now() }).await?;
    let clients = app.store.snapshot().clients;
    // Somebody may have deleted it again already.
    let certificate = clients.certificates.get(&name).ok_or_else(|| not_found(Kind::Certificate, &name))?;
    Ok(done.answer(Certificate::new(name, certificate)))
}

#[utoipa::path(delete, path = paths::CERTIFICATE, tag = "certificates", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_certificate(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Name>,
) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteCertificate(name), ()).await
}

// Users

#[utoipa::path(get, path = paths::USERS, tag = "users", params(UserListQuery),
    responses((status = 200, body = Page<Versioned<User>>), (status = 422, body = Problem)))]
pub(super) async fn list_users(
    State(app): App,
    form: Form,
    Params(query): Params<UserListQuery>,
) -> Result<Response, ApiError> {
    let wanted = Wanted { limit: query.limit, cursor: query.cursor, count: query.count };
    list::answer(form, wanted, UserRows(app.store.clone())).await
}

struct UserRows(Store);

impl Rows for UserRows {
    type Key = Username;
    type Row = clients::User;
    type Item = User;

    async fn after(
        &self,
        after: Option<Username>,
        rows_max: u32,
    ) -> Result<Vec<Versioned<clients::User>>, store::Error> {
        self.0.users(after, rows_max).await
    }

    async fn count(&self) -> Result<u64, store::Error> {
        self.0.count_users().await
    }

    fn key(row: &clients::User) -> Username {
        row.name.clone()
    }
}

#[utoipa::path(get, path = paths::USER, tag = "users", params(("name" = String, Path)),
    responses((status = 200, body = Versioned<User>), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn get_user(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Username>,
) -> Result<Response, ApiError> {
    let user = app.store.user(name.clone()).await?.ok_or_else(|| not_found(Kind::User, &name))?;
    show(&conditions, Kind::User, &name, user.map(User::from))
}

/// Without a password the known one stays.
#[utoipa::path(put, path = paths::USER, tag = "users", params(("name" = String, Path)), request_body = UserPut,
    responses((status = 200, body = Versioned<User>), (status = 201, body = Versioned<User>), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 422, body = Problem)))]
pub(super) async fn put_user(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Username>,
    Body(members): Body<Members>,
) -> Result<Response, ApiError> {
    let body: UserPut = members.named(&["revision"]).map_err(ApiError::silent_about_passwords)?;
    same_key("/name", &name, body.name.as_ref())?;
    let known = app.store.user(name.clone()).await?.map(|user| user.resource.verifier);
    let verifier = match (body.password, known) {
        (Some(password), known) => verifier(password, known).await?,
        (None, Some(known)) => known,
        (None, None) => {
            let text = format!("no password is known for {name}; give one");
            return Err(ApiError::at(Code::Invalid, "/password", &text));
        }
    };
    change(&app, conditions, Change::PutUser(clients::User { name: name.clone(), verifier }), User { name }).await
}

/// What the store keeps of a password; the known one, if that is of the same password.
async fn verifier(password: Secret, known: Option<Verifier>) -> Result<Verifier, ApiError> {
    let text = password.expose();
    if !(1..=limits::PASSWORD_BYTES_MAX).contains(&text.len()) || text.chars().any(char::is_control) {
        let text = format!("give one line of text of 1 to {} bytes", limits::PASSWORD_BYTES_MAX);
        return Err(ApiError::invalid("/password", &Invalid(text)));
    }
    // Trying a password is meant to take a while.
    let found = blocking(move || match known {
        Some(known) if known.accepts(password.expose()) => Ok(known),
        _ => Verifier::of_password(password.expose()),
    });
    found.await?.map_err(|error| ApiError::new(Code::Internal, error.to_string()))
}

#[utoipa::path(delete, path = paths::USER, tag = "users", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete_user(
    State(app): App,
    conditions: Conditions,
    Key(name): Key<Username>,
) -> Result<Response, ApiError> {
    change(&app, conditions, Change::DeleteUser(name), ()).await
}
