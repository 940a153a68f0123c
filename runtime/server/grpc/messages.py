"""The messages of the protocol on the wire: a table of names, types and field numbers, and classes made of it.

The numbers are those of KServe's `open_inference_grpc.proto`, Triton's extensions of it (its `grpc_service.proto` and
`model_config.proto`) and `grpc.health.v1`; of these, the fields that this server reads or writes. They are no generated
files, which protobuf ties to its releases, and which collide in a process that also has a client's.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# `*`: repeated, `|`: one of several. Maps are written as what they are on the wire, entries of a key and a value, and
# enumerations as int32.
SCHEMA = """
Empty:
Live: bool live 1
Ready: bool ready 1
ModelRequest: string name 1, string version 2
ServerMetadata: string name 1, string version 2, *string extensions 3
TensorMetadata: string name 1, string datatype 2, *int64 shape 3
ModelMetadata: string name 1, *string versions 2, string platform 3, *TensorMetadata inputs 4, *TensorMetadata outputs 5

Value: |bool bool_param 1, |int64 int64_param 2, |string string_param 3, |double double_param 4, |uint64 uint64_param 5
Parameter: string key 1, Value value 2
Contents: *bytes bytes_contents 8
Tensor: string name 1, string datatype 2, *int64 shape 3, *Parameter parameters 4, Contents contents 5
Wanted: string name 1, *Parameter parameters 2
InferRequest: string model_name 1, string model_version 2, string id 3, *Parameter parameters 4, *Tensor inputs 5,
    *Wanted outputs 6, *bytes raw_input_contents 7
InferResponse: string model_name 1, string model_version 2, string id 3, *Parameter parameters 4, *Tensor outputs 5,
    *bytes raw_output_contents 6

ConfigTensor: string name 1, int32 data_type 2, *int64 dims 4, bool optional 8
ConfigOutput: string name 1, int32 data_type 2, *int64 dims 3
ModelConfig: string name 1, string platform 2, int32 max_batch_size 4, *ConfigTensor input 5, *ConfigOutput output 6,
    string backend 17
ModelConfigResponse: ModelConfig config 1

Duration: uint64 count 1, uint64 ns 2
InferStatistics: Duration success 1, Duration fail 2, Duration queue 3, Duration compute_input 4,
    Duration compute_infer 5, Duration compute_output 6, Duration cache_hit 7, Duration cache_miss 8
BatchStatistics: uint64 batch_size 1, Duration compute_input 2, Duration compute_infer 3, Duration compute_output 4
ModelStatistics: string name 1, string version 2, uint64 last_inference 3, uint64 inference_count 4,
    uint64 execution_count 5, InferStatistics inference_stats 6, *BatchStatistics batch_stats 7
StatisticsResponse: *ModelStatistics model_stats 1

IndexRequest: string repository_name 1, bool ready 2
ModelIndex: string name 1, string version 2, string state 3, string reason 4
IndexResponse: *ModelIndex models 1
RepositoryModelRequest: string repository_name 1, string model_name 2

HealthRequest: string service 1
HealthResponse: int32 status 1
"""
PACKAGE = "nopad.inference"
FIELD = re.compile(r"([*|]?)(\w+) (\w+) (\d+)")
Field = descriptor_pb2.FieldDescriptorProto


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="nopad_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in re.findall(r"^(\w+):((?:.*\n)(?:    .*\n)*)", SCHEMA, flags=re.MULTILINE):
        message = file.message_type.add(name=name)
        for sign, kind, field_name, number in FIELD.findall(fields):
            label = Field.LABEL_REPEATED if sign == "*" else Field.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=int(number), label=label)
            if kind[0].isupper():
                field.type, field.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                field.type = Field.Type.Value(f"TYPE_{kind.upper()}")
            if sign == "|":
                if not message.oneof_decl:
                    message.oneof_decl.add(name="choice")
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    named = (pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}") for message in file.message_type)
    return {found.name: message_factory.GetMessageClass(found) for found in named}


MESSAGES = _classes()
