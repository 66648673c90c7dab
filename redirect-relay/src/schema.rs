//! How values that are text on the wire look in an OpenAPI description.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, Type},
    },
};

use crate::{
    domain::Domain,
    gateway::{Host, Name, Pin},
    route::{Pattern, SenderPattern},
};

macro_rules! text {
    ($($name:ident = $as:literal, $example:literal;)+) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new().schema_type(Type::String).examples([$example]).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                $as.into()
            }
        }
    )+};
}

text! {
    Name = "Name", "configured";
    Host = "Host", "mx.example.net";
    Domain = "Domain", "example.com";
    Pin = "Pin", "5f2e1c0a9b8d7e6f5f2e1c0a9b8d7e6f5f2e1c0a9b8d7e6f5f2e1c0a9b8d7e6f";
    Pattern = "Pattern", ".example.com";
    SenderPattern = "SenderPattern", "<>";
}
