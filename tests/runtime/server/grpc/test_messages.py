"""The table of messages agrees, field by field, with the ones that a client brings."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("grpc", reason="the extra grpc is not installed")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient is not installed")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")

from nopad.runtime.server.grpc.messages import MESSAGES  # noqa: E402

THEIRS = {
    "Live": "ServerLiveResponse",
    "Ready": "ModelReadyResponse",
    "ModelRequest": "ModelStatisticsRequest",
    "ServerMetadata": "ServerMetadataResponse",
    "TensorMetadata": "ModelMetadataResponse.TensorMetadata",
    "ModelMetadata": "ModelMetadataResponse",
    "Value": "InferParameter",
    "Parameter": "ModelInferRequest.ParametersEntry",
    "Contents": "InferTensorContents",
    "Tensor": "ModelInferRequest.InferInputTensor",
    "Wanted": "ModelInferRequest.InferRequestedOutputTensor",
    "InferRequest": "ModelInferRequest",
    "InferResponse": "ModelInferResponse",
    "ConfigTensor": "ModelInput",
    "ConfigOutput": "ModelOutput",
    "ModelConfig": "ModelConfig",
    "ModelConfigResponse": "ModelConfigResponse",
    "Duration": "StatisticDuration",
    "InferStatistics": "InferStatistics",
    "BatchStatistics": "InferBatchStatistics",
    "ModelStatistics": "ModelStatistics",
    "StatisticsResponse": "ModelStatisticsResponse",
    "IndexRequest": "RepositoryIndexRequest",
    "ModelIndex": "RepositoryIndexResponse.ModelIndex",
    "IndexResponse": "RepositoryIndexResponse",
    "RepositoryModelRequest": "RepositoryModelLoadRequest",
}
ENUM, INT32 = 14, 5  # the same on the wire


@pytest.mark.parametrize("ours", THEIRS)
def test_fields_have_the_names_numbers_and_types_of_tritons(ours: str) -> None:
    outer, _, inner = THEIRS[ours].partition(".")
    top = {**model_config_pb2.DESCRIPTOR.message_types_by_name, **service_pb2.DESCRIPTOR.message_types_by_name}
    theirs = top[outer].nested_types_by_name[inner] if inner else top[outer]
    for field in MESSAGES[ours].DESCRIPTOR.fields:
        other = theirs.fields_by_name[field.name]
        assert field.number == other.number and field.is_repeated == other.is_repeated, field.name
        assert field.type == (INT32 if other.type == ENUM else other.type), field.name
        assert (field.containing_oneof is None) == (other.containing_oneof is None), field.name


def test_only_empty_and_health_have_no_counterpart() -> None:
    assert set(MESSAGES) - set(THEIRS) == {"Empty", "HealthRequest", "HealthResponse"}
