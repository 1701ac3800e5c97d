//! Schemas of the bodies that are read by a type of their own: what stands in JSON, with what must not stand together.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Object, ObjectBuilder, OneOfBuilder, RefOr, Schema,
        schema::{SchemaType, Type},
    },
};

use super::body::{Base64, CompareBody, Operand, PutBody};
use super::{Compare, CompareOp, TxnDelete, TxnGet, TxnList, TxnOp, TxnPut, TxnRange};

/// Standard base64 with padding.
const BASE64: &str = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$";
/// Targets of comparisons whose operand is a number.
const NUMBERS: [&str; 4] = ["version", "create_revision", "mod_revision", "lease"];

impl PartialSchema for Base64 {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).pattern(Some(BASE64)).into()
    }
}
impl ToSchema for Base64 {}

impl PartialSchema for Operand {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new().item(Base64::schema()).item(number()).into()
    }
}
impl ToSchema for Operand {}

impl PartialSchema for TxnPut {
    fn schema() -> RefOr<Schema> {
        let body = object::<PutBody>();
        let with = |field: &str, other: &str| required(without(body.clone(), other), field);
        OneOfBuilder::new().item(with("value", "text")).item(with("text", "value")).into()
    }
}

impl ToSchema for TxnPut {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("TxnPut")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        PutBody::schemas(schemas);
    }
}

impl PartialSchema for Compare {
    fn schema() -> RefOr<Schema> {
        let body = object::<CompareBody>();
        let of = |targets: &[&str], field: &str, other: Option<&str>, operand: RefOr<Schema>| {
            let mut body = other.map_or(body.clone(), |other| without(body.clone(), other));
            let targets = ObjectBuilder::new()
                .schema_type(SchemaType::new(Type::String))
                .enum_values(Some(targets.iter().map(ToString::to_string)));
            body.properties.insert("target".into(), targets.into());
            body.properties.insert(field.into(), operand);
            required(body, field)
        };
        let text = ObjectBuilder::new().schema_type(SchemaType::new(Type::String));
        OneOfBuilder::new()
            .item(of(&["value"], "value", Some("text"), Base64::schema()))
            .item(of(&["value"], "text", Some("value"), text.into()))
            .item(of(&NUMBERS, "value", Some("text"), number()))
            .into()
    }
}

impl ToSchema for Compare {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Compare")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        CompareOp::schemas(schemas);
        schemas.push(("CompareOp".into(), CompareOp::schema()));
    }
}

impl PartialSchema for TxnOp {
    fn schema() -> RefOr<Schema> {
        let mut kinds = OneOfBuilder::new();
        let puts = match TxnPut::schema() {
            RefOr::T(Schema::OneOf(puts)) => puts.items,
            other => vec![other],
        };
        for put in puts {
            let RefOr::T(Schema::Object(put)) = put else { unreachable!("a put is made of objects above") };
            kinds = kinds.item(tagged("put", put));
        }
        kinds
            .item(tagged("get", object::<TxnGet>()))
            .item(tagged("list", object::<TxnList>()))
            .item(tagged("delete", object::<TxnDelete>()))
            .item(tagged("delete_range", object::<TxnRange>()))
            .description(Some("One operation; `op` says which. Later ones see what earlier ones did."))
            .into()
    }
}

impl ToSchema for TxnOp {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        PutBody::schemas(schemas);
        TxnGet::schemas(schemas);
        TxnList::schemas(schemas);
        TxnDelete::schemas(schemas);
        TxnRange::schemas(schemas);
    }
}

fn number() -> RefOr<Schema> {
    u64::schema()
}

/// The schema of a struct.
fn object<T: PartialSchema>() -> Object {
    match T::schema() {
        RefOr::T(Schema::Object(object)) => object,
        RefOr::T(_) | RefOr::Ref(_) => unreachable!("the schema of a struct is an object"),
    }
}

fn without(mut object: Object, field: &str) -> Object {
    object.properties.remove(field);
    object
}

fn required(mut object: Object, field: &str) -> Object {
    object.required.push(field.into());
    object
}

/// `object` as the operation that `op` names.
fn tagged(op: &str, mut object: Object) -> Object {
    let name = ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).enum_values(Some([op]));
    object.properties.insert("op".into(), name.into());
    required(object, "op")
}
