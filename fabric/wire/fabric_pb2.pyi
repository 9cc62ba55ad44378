from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Accepted(_message.Message):
    __slots__ = ("granted_uhs", "held_uhs", "final", "facts_json", "free_uhs", "within_key", "packages")
    GRANTED_UHS_FIELD_NUMBER: _ClassVar[int]
    HELD_UHS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    FACTS_JSON_FIELD_NUMBER: _ClassVar[int]
    FREE_UHS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_KEY_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    granted_uhs: int
    held_uhs: int
    final: bool
    facts_json: str
    free_uhs: int
    within_key: bool
    packages: _containers.RepeatedCompositeFieldContainer[PackageRoom]
    def __init__(self, granted_uhs: _Optional[int] = ..., held_uhs: _Optional[int] = ..., final: _Optional[bool] = ..., facts_json: _Optional[str] = ..., free_uhs: _Optional[int] = ..., within_key: _Optional[bool] = ..., packages: _Optional[_Iterable[_Union[PackageRoom, _Mapping]]] = ...) -> None: ...

class PackageRoom(_message.Message):
    __slots__ = ("asset", "held", "free")
    ASSET_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    asset: str
    held: int
    free: int
    def __init__(self, asset: _Optional[str] = ..., held: _Optional[int] = ..., free: _Optional[int] = ...) -> None: ...

class PackageLimit(_message.Message):
    __slots__ = ("asset", "most")
    ASSET_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    asset: str
    most: int
    def __init__(self, asset: _Optional[str] = ..., most: _Optional[int] = ...) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "least_prompt_tokens", "least_completion_tokens", "rate_version")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEAST_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEAST_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    least_prompt_tokens: int
    least_completion_tokens: int
    rate_version: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., least_prompt_tokens: _Optional[int] = ..., least_completion_tokens: _Optional[int] = ..., rate_version: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data", "sha256")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    sha256: str
    def __init__(self, data: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class Scope(_message.Message):
    __slots__ = ("services", "accelerators", "models", "operators")
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    services: _containers.RepeatedScalarFieldContainer[str]
    accelerators: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedScalarFieldContainer[str]
    operators: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, services: _Optional[_Iterable[str]] = ..., accelerators: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[str]] = ..., operators: _Optional[_Iterable[str]] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("name", "kind", "service", "accelerators", "devices", "devices_per_node", "limit_uhs", "hold", "preemptible", "grace_us", "time_limit_us", "max_retries", "devices_least", "auto_park_us", "data", "estimate_us", "tags", "mix", "fraction", "prefer")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_PER_NODE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIBLE_FIELD_NUMBER: _ClassVar[int]
    GRACE_US_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_US_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_LEAST_FIELD_NUMBER: _ClassVar[int]
    AUTO_PARK_US_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_US_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    MIX_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    PREFER_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    service: str
    accelerators: _containers.RepeatedScalarFieldContainer[str]
    devices: int
    devices_per_node: int
    limit_uhs: int
    hold: str
    preemptible: bool
    grace_us: int
    time_limit_us: int
    max_retries: int
    devices_least: int
    auto_park_us: int
    data: _containers.RepeatedCompositeFieldContainer[Dataset]
    estimate_us: int
    tags: _containers.RepeatedScalarFieldContainer[str]
    mix: str
    fraction: _containers.RepeatedScalarFieldContainer[int]
    prefer: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., service: _Optional[str] = ..., accelerators: _Optional[_Iterable[str]] = ..., devices: _Optional[int] = ..., devices_per_node: _Optional[int] = ..., limit_uhs: _Optional[int] = ..., hold: _Optional[str] = ..., preemptible: _Optional[bool] = ..., grace_us: _Optional[int] = ..., time_limit_us: _Optional[int] = ..., max_retries: _Optional[int] = ..., devices_least: _Optional[int] = ..., auto_park_us: _Optional[int] = ..., data: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., estimate_us: _Optional[int] = ..., tags: _Optional[_Iterable[str]] = ..., mix: _Optional[str] = ..., fraction: _Optional[_Iterable[int]] = ..., prefer: _Optional[str] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("prefix", "bytes", "region")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    bytes: int
    region: str
    def __init__(self, prefix: _Optional[str] = ..., bytes: _Optional[int] = ..., region: _Optional[str] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("function", "function_sha256", "command", "working_dir_sha256", "python", "python_path", "env", "runtime_env_json", "preload", "ranks")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_SHA256_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_SHA256_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    PYTHON_PATH_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_ENV_JSON_FIELD_NUMBER: _ClassVar[int]
    PRELOAD_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    function: bytes
    function_sha256: str
    command: _containers.RepeatedScalarFieldContainer[str]
    working_dir_sha256: str
    python: str
    python_path: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.ScalarMap[str, str]
    runtime_env_json: str
    preload: str
    ranks: str
    def __init__(self, function: _Optional[bytes] = ..., function_sha256: _Optional[str] = ..., command: _Optional[_Iterable[str]] = ..., working_dir_sha256: _Optional[str] = ..., python: _Optional[str] = ..., python_path: _Optional[_Iterable[str]] = ..., env: _Optional[_Mapping[str, str]] = ..., runtime_env_json: _Optional[str] = ..., preload: _Optional[str] = ..., ranks: _Optional[str] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("request_id", "spec", "payload")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: JobSpec
    payload: Payload
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("job_id", "held_uhs", "facts_json")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    HELD_UHS_FIELD_NUMBER: _ClassVar[int]
    FACTS_JSON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    held_uhs: int
    facts_json: str
    def __init__(self, job_id: _Optional[str] = ..., held_uhs: _Optional[int] = ..., facts_json: _Optional[str] = ...) -> None: ...

class QuoteRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: JobSpec
    def __init__(self, spec: _Optional[_Union[JobSpec, _Mapping]] = ...) -> None: ...

class QuoteReply(_message.Message):
    __slots__ = ("accelerator", "devices", "burn_uhs_per_s", "burn_max_uhs_per_s", "burn_idle_uhs_per_s", "hold_uhs", "runtime_us", "cost_microcny", "free_uhs", "affordable", "placeable_now", "refusal", "runs", "burned_p50_uhs", "burned_p90_uhs", "took_p50_us", "took_p90_us", "attempts_p90", "fraction", "starts_known", "starts_p50_us", "starts_p90_us")
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    BURN_UHS_PER_S_FIELD_NUMBER: _ClassVar[int]
    BURN_MAX_UHS_PER_S_FIELD_NUMBER: _ClassVar[int]
    BURN_IDLE_UHS_PER_S_FIELD_NUMBER: _ClassVar[int]
    HOLD_UHS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_US_FIELD_NUMBER: _ClassVar[int]
    COST_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    FREE_UHS_FIELD_NUMBER: _ClassVar[int]
    AFFORDABLE_FIELD_NUMBER: _ClassVar[int]
    PLACEABLE_NOW_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    BURNED_P50_UHS_FIELD_NUMBER: _ClassVar[int]
    BURNED_P90_UHS_FIELD_NUMBER: _ClassVar[int]
    TOOK_P50_US_FIELD_NUMBER: _ClassVar[int]
    TOOK_P90_US_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_P90_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    STARTS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    STARTS_P50_US_FIELD_NUMBER: _ClassVar[int]
    STARTS_P90_US_FIELD_NUMBER: _ClassVar[int]
    accelerator: str
    devices: int
    burn_uhs_per_s: int
    burn_max_uhs_per_s: int
    burn_idle_uhs_per_s: int
    hold_uhs: int
    runtime_us: int
    cost_microcny: int
    free_uhs: int
    affordable: bool
    placeable_now: bool
    refusal: str
    runs: int
    burned_p50_uhs: int
    burned_p90_uhs: int
    took_p50_us: int
    took_p90_us: int
    attempts_p90: int
    fraction: _containers.RepeatedScalarFieldContainer[int]
    starts_known: int
    starts_p50_us: int
    starts_p90_us: int
    def __init__(self, accelerator: _Optional[str] = ..., devices: _Optional[int] = ..., burn_uhs_per_s: _Optional[int] = ..., burn_max_uhs_per_s: _Optional[int] = ..., burn_idle_uhs_per_s: _Optional[int] = ..., hold_uhs: _Optional[int] = ..., runtime_us: _Optional[int] = ..., cost_microcny: _Optional[int] = ..., free_uhs: _Optional[int] = ..., affordable: _Optional[bool] = ..., placeable_now: _Optional[bool] = ..., refusal: _Optional[str] = ..., runs: _Optional[int] = ..., burned_p50_uhs: _Optional[int] = ..., burned_p90_uhs: _Optional[int] = ..., took_p50_us: _Optional[int] = ..., took_p90_us: _Optional[int] = ..., attempts_p90: _Optional[int] = ..., fraction: _Optional[_Iterable[int]] = ..., starts_known: _Optional[int] = ..., starts_p50_us: _Optional[int] = ..., starts_p90_us: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "account_id", "name", "kind", "state", "reason", "accelerator", "devices", "nodes", "limit_uhs", "held_uhs", "burned_uhs", "burn_uhs_per_s", "utilisation_ppm", "runway_us", "attempts", "submitted_at_us", "started_at_us", "ended_at_us", "settled", "error", "result_ref", "lease_id", "revision", "step", "steps_total", "loss_micro", "throughput_milli", "eta_us", "timeline", "saved_step", "saved_at_us", "saved_bytes", "grace_needed_us", "timers", "warning", "idle_us", "devices_least", "tier", "key_id", "shown_to_operator", "exit_code", "ran", "tags", "fraction", "project", "member")
    class TimersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    HELD_UHS_FIELD_NUMBER: _ClassVar[int]
    BURNED_UHS_FIELD_NUMBER: _ClassVar[int]
    BURN_UHS_PER_S_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_PPM_FIELD_NUMBER: _ClassVar[int]
    RUNWAY_US_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESULT_REF_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOSS_MICRO_FIELD_NUMBER: _ClassVar[int]
    THROUGHPUT_MILLI_FIELD_NUMBER: _ClassVar[int]
    ETA_US_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    SAVED_STEP_FIELD_NUMBER: _ClassVar[int]
    SAVED_AT_US_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRACE_NEEDED_US_FIELD_NUMBER: _ClassVar[int]
    TIMERS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    IDLE_US_FIELD_NUMBER: _ClassVar[int]
    DEVICES_LEAST_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SHOWN_TO_OPERATOR_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    RAN_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    account_id: str
    name: str
    kind: str
    state: str
    reason: str
    accelerator: str
    devices: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    limit_uhs: int
    held_uhs: int
    burned_uhs: int
    burn_uhs_per_s: int
    utilisation_ppm: int
    runway_us: int
    attempts: int
    submitted_at_us: int
    started_at_us: int
    ended_at_us: int
    settled: bool
    error: str
    result_ref: str
    lease_id: str
    revision: int
    step: int
    steps_total: int
    loss_micro: int
    throughput_milli: int
    eta_us: int
    timeline: str
    saved_step: int
    saved_at_us: int
    saved_bytes: int
    grace_needed_us: int
    timers: _containers.ScalarMap[str, int]
    warning: str
    idle_us: int
    devices_least: int
    tier: str
    key_id: str
    shown_to_operator: bool
    exit_code: int
    ran: _containers.RepeatedCompositeFieldContainer[Stay]
    tags: _containers.RepeatedScalarFieldContainer[str]
    fraction: _containers.RepeatedScalarFieldContainer[int]
    project: str
    member: str
    def __init__(self, job_id: _Optional[str] = ..., account_id: _Optional[str] = ..., name: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., accelerator: _Optional[str] = ..., devices: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., limit_uhs: _Optional[int] = ..., held_uhs: _Optional[int] = ..., burned_uhs: _Optional[int] = ..., burn_uhs_per_s: _Optional[int] = ..., utilisation_ppm: _Optional[int] = ..., runway_us: _Optional[int] = ..., attempts: _Optional[int] = ..., submitted_at_us: _Optional[int] = ..., started_at_us: _Optional[int] = ..., ended_at_us: _Optional[int] = ..., settled: _Optional[bool] = ..., error: _Optional[str] = ..., result_ref: _Optional[str] = ..., lease_id: _Optional[str] = ..., revision: _Optional[int] = ..., step: _Optional[int] = ..., steps_total: _Optional[int] = ..., loss_micro: _Optional[int] = ..., throughput_milli: _Optional[int] = ..., eta_us: _Optional[int] = ..., timeline: _Optional[str] = ..., saved_step: _Optional[int] = ..., saved_at_us: _Optional[int] = ..., saved_bytes: _Optional[int] = ..., grace_needed_us: _Optional[int] = ..., timers: _Optional[_Mapping[str, int]] = ..., warning: _Optional[str] = ..., idle_us: _Optional[int] = ..., devices_least: _Optional[int] = ..., tier: _Optional[str] = ..., key_id: _Optional[str] = ..., shown_to_operator: _Optional[bool] = ..., exit_code: _Optional[int] = ..., ran: _Optional[_Iterable[_Union[Stay, _Mapping]]] = ..., tags: _Optional[_Iterable[str]] = ..., fraction: _Optional[_Iterable[int]] = ..., project: _Optional[str] = ..., member: _Optional[str] = ...) -> None: ...

class Stay(_message.Message):
    __slots__ = ("attempt", "accelerator", "devices", "nodes", "started_at_us", "ended_at_us", "ended")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    accelerator: str
    devices: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    started_at_us: int
    ended_at_us: int
    ended: str
    def __init__(self, attempt: _Optional[int] = ..., accelerator: _Optional[str] = ..., devices: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., started_at_us: _Optional[int] = ..., ended_at_us: _Optional[int] = ..., ended: _Optional[str] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class WhyRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class WhyReply(_message.Message):
    __slots__ = ("job_id", "state", "sentence", "facts_json")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    FACTS_JSON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    state: str
    sentence: str
    facts_json: str
    def __init__(self, job_id: _Optional[str] = ..., state: _Optional[str] = ..., sentence: _Optional[str] = ..., facts_json: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("states", "limit", "name", "tags", "from_us", "until_us", "beginning", "after", "of_request")
    STATES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    BEGINNING_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    OF_REQUEST_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    from_us: int
    until_us: int
    beginning: str
    after: str
    of_request: str
    def __init__(self, states: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., from_us: _Optional[int] = ..., until_us: _Optional[int] = ..., beginning: _Optional[str] = ..., after: _Optional[str] = ..., of_request: _Optional[str] = ...) -> None: ...

class ListJobsReply(_message.Message):
    __slots__ = ("jobs", "next")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class WatchJobsRequest(_message.Message):
    __slots__ = ("after_revision", "job_id", "results")
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    after_revision: int
    job_id: str
    results: bool
    def __init__(self, after_revision: _Optional[int] = ..., job_id: _Optional[str] = ..., results: _Optional[bool] = ...) -> None: ...

class JobUpdate(_message.Message):
    __slots__ = ("revision", "job", "result")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    revision: int
    job: Job
    result: bytes
    def __init__(self, revision: _Optional[int] = ..., job: _Optional[_Union[Job, _Mapping]] = ..., result: _Optional[bytes] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id", "job_id", "save")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    job_id: str
    save: bool
    def __init__(self, request_id: _Optional[str] = ..., job_id: _Optional[str] = ..., save: _Optional[bool] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("request_id", "job_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    job_id: str
    def __init__(self, request_id: _Optional[str] = ..., job_id: _Optional[str] = ...) -> None: ...

class SaveNowRequest(_message.Message):
    __slots__ = ("request_id", "job_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    job_id: str
    def __init__(self, request_id: _Optional[str] = ..., job_id: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("step", "bytes", "attempt", "world", "shards", "origin", "model")
    STEP_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    step: int
    bytes: int
    attempt: int
    world: int
    shards: int
    origin: str
    model: str
    def __init__(self, step: _Optional[int] = ..., bytes: _Optional[int] = ..., attempt: _Optional[int] = ..., world: _Optional[int] = ..., shards: _Optional[int] = ..., origin: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ListCheckpointsReply(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ...) -> None: ...

class ListShardsRequest(_message.Message):
    __slots__ = ("job_id", "step", "session")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    step: int
    session: str
    def __init__(self, job_id: _Optional[str] = ..., step: _Optional[int] = ..., session: _Optional[str] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("name", "bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class ShardsPage(_message.Message):
    __slots__ = ("checkpoint", "draft", "meta_json", "shards", "sessions")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    META_JSON_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    draft: str
    meta_json: str
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    sessions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., draft: _Optional[str] = ..., meta_json: _Optional[str] = ..., shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ..., sessions: _Optional[_Iterable[str]] = ...) -> None: ...

class FetchCheckpointRequest(_message.Message):
    __slots__ = ("job_id", "session", "draft", "shard", "offset")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    session: str
    draft: str
    shard: int
    offset: int
    def __init__(self, job_id: _Optional[str] = ..., session: _Optional[str] = ..., draft: _Optional[str] = ..., shard: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class CheckpointChunk(_message.Message):
    __slots__ = ("shard", "offset", "data")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shard: int
    offset: int
    data: bytes
    def __init__(self, shard: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RollBackRequest(_message.Message):
    __slots__ = ("request_id", "job_id", "step")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    job_id: str
    step: int
    def __init__(self, request_id: _Optional[str] = ..., job_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class DeleteCheckpointsRequest(_message.Message):
    __slots__ = ("request_id", "job_id", "keep", "everything")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    EVERYTHING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    job_id: str
    keep: int
    everything: bool
    def __init__(self, request_id: _Optional[str] = ..., job_id: _Optional[str] = ..., keep: _Optional[int] = ..., everything: _Optional[bool] = ...) -> None: ...

class DeleteCheckpointsReply(_message.Message):
    __slots__ = ("deleted_bytes", "left")
    DELETED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    deleted_bytes: int
    left: int
    def __init__(self, deleted_bytes: _Optional[int] = ..., left: _Optional[int] = ...) -> None: ...

class ForkRequest(_message.Message):
    __slots__ = ("request_id", "job_id", "step", "limit_uhs", "name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    job_id: str
    step: int
    limit_uhs: int
    name: str
    def __init__(self, request_id: _Optional[str] = ..., job_id: _Optional[str] = ..., step: _Optional[int] = ..., limit_uhs: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("request_id", "job_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    job_id: str
    def __init__(self, request_id: _Optional[str] = ..., job_id: _Optional[str] = ...) -> None: ...

class RaiseLimitRequest(_message.Message):
    __slots__ = ("request_id", "job_id", "limit_uhs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    job_id: str
    limit_uhs: int
    def __init__(self, request_id: _Optional[str] = ..., job_id: _Optional[str] = ..., limit_uhs: _Optional[int] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("job_id", "offsets", "follow")
    class OffsetsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    offsets: _containers.ScalarMap[str, int]
    follow: bool
    def __init__(self, job_id: _Optional[str] = ..., offsets: _Optional[_Mapping[str, int]] = ..., follow: _Optional[bool] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("rank", "attempt", "offset", "data")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    rank: int
    attempt: int
    offset: int
    data: bytes
    def __init__(self, rank: _Optional[int] = ..., attempt: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ResultRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ArtifactRequest(_message.Message):
    __slots__ = ("job_id", "name")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    name: str
    def __init__(self, job_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class PutBlobReply(_message.Message):
    __slots__ = ("sha256", "size")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size: int
    def __init__(self, sha256: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class BalanceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Lot(_message.Message):
    __slots__ = ("lot_id", "origin", "granted_uhs", "free_uhs", "held_uhs", "effective_at_us", "expires_at_us", "scope", "price_microcny")
    LOT_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    GRANTED_UHS_FIELD_NUMBER: _ClassVar[int]
    FREE_UHS_FIELD_NUMBER: _ClassVar[int]
    HELD_UHS_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_AT_US_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    PRICE_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    lot_id: str
    origin: str
    granted_uhs: int
    free_uhs: int
    held_uhs: int
    effective_at_us: int
    expires_at_us: int
    scope: str
    price_microcny: int
    def __init__(self, lot_id: _Optional[str] = ..., origin: _Optional[str] = ..., granted_uhs: _Optional[int] = ..., free_uhs: _Optional[int] = ..., held_uhs: _Optional[int] = ..., effective_at_us: _Optional[int] = ..., expires_at_us: _Optional[int] = ..., scope: _Optional[str] = ..., price_microcny: _Optional[int] = ...) -> None: ...

class BalanceReply(_message.Message):
    __slots__ = ("account_id", "name", "plan", "tier", "posted_uhs", "free_uhs", "held_uhs", "debt_uhs", "credit_limit_uhs", "burn_uhs_per_s", "runway_us", "lots", "bound_uhs", "units", "receivable_microcny", "invoiced_uhs", "weight_ppm", "cohort", "charged_back_uhs", "standing", "standing_why", "packages", "invoices")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    POSTED_UHS_FIELD_NUMBER: _ClassVar[int]
    FREE_UHS_FIELD_NUMBER: _ClassVar[int]
    HELD_UHS_FIELD_NUMBER: _ClassVar[int]
    DEBT_UHS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    BURN_UHS_PER_S_FIELD_NUMBER: _ClassVar[int]
    RUNWAY_US_FIELD_NUMBER: _ClassVar[int]
    LOTS_FIELD_NUMBER: _ClassVar[int]
    BOUND_UHS_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    RECEIVABLE_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    INVOICED_UHS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PPM_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    CHARGED_BACK_UHS_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    STANDING_WHY_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    INVOICES_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    name: str
    plan: str
    tier: str
    posted_uhs: int
    free_uhs: int
    held_uhs: int
    debt_uhs: int
    credit_limit_uhs: int
    burn_uhs_per_s: int
    runway_us: int
    lots: _containers.RepeatedCompositeFieldContainer[Lot]
    bound_uhs: int
    units: _containers.RepeatedCompositeFieldContainer[Units]
    receivable_microcny: int
    invoiced_uhs: int
    weight_ppm: int
    cohort: str
    charged_back_uhs: int
    standing: str
    standing_why: str
    packages: _containers.RepeatedCompositeFieldContainer[Package]
    invoices: _containers.RepeatedCompositeFieldContainer[Invoice]
    def __init__(self, account_id: _Optional[str] = ..., name: _Optional[str] = ..., plan: _Optional[str] = ..., tier: _Optional[str] = ..., posted_uhs: _Optional[int] = ..., free_uhs: _Optional[int] = ..., held_uhs: _Optional[int] = ..., debt_uhs: _Optional[int] = ..., credit_limit_uhs: _Optional[int] = ..., burn_uhs_per_s: _Optional[int] = ..., runway_us: _Optional[int] = ..., lots: _Optional[_Iterable[_Union[Lot, _Mapping]]] = ..., bound_uhs: _Optional[int] = ..., units: _Optional[_Iterable[_Union[Units, _Mapping]]] = ..., receivable_microcny: _Optional[int] = ..., invoiced_uhs: _Optional[int] = ..., weight_ppm: _Optional[int] = ..., cohort: _Optional[str] = ..., charged_back_uhs: _Optional[int] = ..., standing: _Optional[str] = ..., standing_why: _Optional[str] = ..., packages: _Optional[_Iterable[_Union[Package, _Mapping]]] = ..., invoices: _Optional[_Iterable[_Union[Invoice, _Mapping]]] = ...) -> None: ...

class Package(_message.Message):
    __slots__ = ("asset", "family", "weights", "granted", "free", "held", "used", "expired", "voided", "worth_uhs", "lots")
    ASSET_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    VOIDED_FIELD_NUMBER: _ClassVar[int]
    WORTH_UHS_FIELD_NUMBER: _ClassVar[int]
    LOTS_FIELD_NUMBER: _ClassVar[int]
    asset: str
    family: str
    weights: _containers.RepeatedScalarFieldContainer[int]
    granted: int
    free: int
    held: int
    used: int
    expired: int
    voided: int
    worth_uhs: int
    lots: _containers.RepeatedCompositeFieldContainer[PackageLot]
    def __init__(self, asset: _Optional[str] = ..., family: _Optional[str] = ..., weights: _Optional[_Iterable[int]] = ..., granted: _Optional[int] = ..., free: _Optional[int] = ..., held: _Optional[int] = ..., used: _Optional[int] = ..., expired: _Optional[int] = ..., voided: _Optional[int] = ..., worth_uhs: _Optional[int] = ..., lots: _Optional[_Iterable[_Union[PackageLot, _Mapping]]] = ...) -> None: ...

class PackageLot(_message.Message):
    __slots__ = ("lot_id", "origin", "granted", "free", "held", "used", "effective_at_us", "expires_at_us", "scope", "price_microcny", "worth_uhs")
    LOT_ID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_AT_US_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    PRICE_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    WORTH_UHS_FIELD_NUMBER: _ClassVar[int]
    lot_id: str
    origin: str
    granted: int
    free: int
    held: int
    used: int
    effective_at_us: int
    expires_at_us: int
    scope: str
    price_microcny: int
    worth_uhs: int
    def __init__(self, lot_id: _Optional[str] = ..., origin: _Optional[str] = ..., granted: _Optional[int] = ..., free: _Optional[int] = ..., held: _Optional[int] = ..., used: _Optional[int] = ..., effective_at_us: _Optional[int] = ..., expires_at_us: _Optional[int] = ..., scope: _Optional[str] = ..., price_microcny: _Optional[int] = ..., worth_uhs: _Optional[int] = ...) -> None: ...

class Invoice(_message.Message):
    __slots__ = ("invoice_id", "number", "price_microcny", "unpaid_microcny", "issued_at_us", "due_at_us", "reminded", "stopped_at_us", "parked_at_us", "next_step", "next_at_us")
    INVOICE_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PRICE_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    UNPAID_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_US_FIELD_NUMBER: _ClassVar[int]
    DUE_AT_US_FIELD_NUMBER: _ClassVar[int]
    REMINDED_FIELD_NUMBER: _ClassVar[int]
    STOPPED_AT_US_FIELD_NUMBER: _ClassVar[int]
    PARKED_AT_US_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    NEXT_AT_US_FIELD_NUMBER: _ClassVar[int]
    invoice_id: str
    number: int
    price_microcny: int
    unpaid_microcny: int
    issued_at_us: int
    due_at_us: int
    reminded: int
    stopped_at_us: int
    parked_at_us: int
    next_step: str
    next_at_us: int
    def __init__(self, invoice_id: _Optional[str] = ..., number: _Optional[int] = ..., price_microcny: _Optional[int] = ..., unpaid_microcny: _Optional[int] = ..., issued_at_us: _Optional[int] = ..., due_at_us: _Optional[int] = ..., reminded: _Optional[int] = ..., stopped_at_us: _Optional[int] = ..., parked_at_us: _Optional[int] = ..., next_step: _Optional[str] = ..., next_at_us: _Optional[int] = ...) -> None: ...

class Units(_message.Message):
    __slots__ = ("asset", "amount", "expires_at_us")
    ASSET_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    asset: str
    amount: int
    expires_at_us: int
    def __init__(self, asset: _Optional[str] = ..., amount: _Optional[int] = ..., expires_at_us: _Optional[int] = ...) -> None: ...

class TopUpRequest(_message.Message):
    __slots__ = ("request_id", "amount_uhs", "payment_ref")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_UHS_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_REF_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    amount_uhs: int
    payment_ref: str
    def __init__(self, request_id: _Optional[str] = ..., amount_uhs: _Optional[int] = ..., payment_ref: _Optional[str] = ...) -> None: ...

class BuyBundleRequest(_message.Message):
    __slots__ = ("request_id", "bundle", "payment_ref")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_REF_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    bundle: str
    payment_ref: str
    def __init__(self, request_id: _Optional[str] = ..., bundle: _Optional[str] = ..., payment_ref: _Optional[str] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("request_id", "subscription", "payment_ref")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_REF_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    subscription: str
    payment_ref: str
    def __init__(self, request_id: _Optional[str] = ..., subscription: _Optional[str] = ..., payment_ref: _Optional[str] = ...) -> None: ...

class UnsubscribeRequest(_message.Message):
    __slots__ = ("request_id", "subscription")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    subscription: str
    def __init__(self, request_id: _Optional[str] = ..., subscription: _Optional[str] = ...) -> None: ...

class PackageUse(_message.Message):
    __slots__ = ("asset", "units", "tokens", "lots")
    ASSET_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOTS_FIELD_NUMBER: _ClassVar[int]
    asset: str
    units: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    lots: _containers.RepeatedCompositeFieldContainer[PackageShare]
    def __init__(self, asset: _Optional[str] = ..., units: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., lots: _Optional[_Iterable[_Union[PackageShare, _Mapping]]] = ...) -> None: ...

class PackageShare(_message.Message):
    __slots__ = ("lot_id", "units")
    LOT_ID_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    lot_id: str
    units: int
    def __init__(self, lot_id: _Optional[str] = ..., units: _Optional[int] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ("job_id", "from_us", "until_us", "project")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    from_us: int
    until_us: int
    project: str
    def __init__(self, job_id: _Optional[str] = ..., from_us: _Optional[int] = ..., until_us: _Optional[int] = ..., project: _Optional[str] = ...) -> None: ...

class Cdr(_message.Message):
    __slots__ = ("cdr_id", "account_id", "job_id", "lease_id", "name", "service", "accelerator", "devices", "started_at_us", "ended_at_us", "metered_us", "busy_us", "estimated_us", "tariff_version", "weight_ppm", "charged_uhs", "refunded_uhs", "absorbed_uhs", "ended", "bands", "model", "key_id", "rate_version", "rate_uhs_per_mtok", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "covered", "fraction", "packages", "spared_uhs", "booked_uhs", "tags", "project", "member", "spans")
    CDR_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    METERED_US_FIELD_NUMBER: _ClassVar[int]
    BUSY_US_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_US_FIELD_NUMBER: _ClassVar[int]
    TARIFF_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PPM_FIELD_NUMBER: _ClassVar[int]
    CHARGED_UHS_FIELD_NUMBER: _ClassVar[int]
    REFUNDED_UHS_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_UHS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    BANDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    RATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RATE_UHS_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COVERED_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    SPARED_UHS_FIELD_NUMBER: _ClassVar[int]
    BOOKED_UHS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    cdr_id: str
    account_id: str
    job_id: str
    lease_id: str
    name: str
    service: str
    accelerator: str
    devices: int
    started_at_us: int
    ended_at_us: int
    metered_us: int
    busy_us: int
    estimated_us: int
    tariff_version: int
    weight_ppm: int
    charged_uhs: int
    refunded_uhs: int
    absorbed_uhs: int
    ended: str
    bands: _containers.RepeatedCompositeFieldContainer[Band]
    model: str
    key_id: str
    rate_version: int
    rate_uhs_per_mtok: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    covered: bool
    fraction: _containers.RepeatedScalarFieldContainer[int]
    packages: _containers.RepeatedCompositeFieldContainer[PackageUse]
    spared_uhs: int
    booked_uhs: int
    tags: _containers.RepeatedScalarFieldContainer[str]
    project: str
    member: str
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, cdr_id: _Optional[str] = ..., account_id: _Optional[str] = ..., job_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., name: _Optional[str] = ..., service: _Optional[str] = ..., accelerator: _Optional[str] = ..., devices: _Optional[int] = ..., started_at_us: _Optional[int] = ..., ended_at_us: _Optional[int] = ..., metered_us: _Optional[int] = ..., busy_us: _Optional[int] = ..., estimated_us: _Optional[int] = ..., tariff_version: _Optional[int] = ..., weight_ppm: _Optional[int] = ..., charged_uhs: _Optional[int] = ..., refunded_uhs: _Optional[int] = ..., absorbed_uhs: _Optional[int] = ..., ended: _Optional[str] = ..., bands: _Optional[_Iterable[_Union[Band, _Mapping]]] = ..., model: _Optional[str] = ..., key_id: _Optional[str] = ..., rate_version: _Optional[int] = ..., rate_uhs_per_mtok: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., covered: _Optional[bool] = ..., fraction: _Optional[_Iterable[int]] = ..., packages: _Optional[_Iterable[_Union[PackageUse, _Mapping]]] = ..., spared_uhs: _Optional[int] = ..., booked_uhs: _Optional[int] = ..., tags: _Optional[_Iterable[str]] = ..., project: _Optional[str] = ..., member: _Optional[str] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("from_us", "until_us", "estimated_us", "tariff_version", "weight_ppm", "bands")
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_US_FIELD_NUMBER: _ClassVar[int]
    TARIFF_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PPM_FIELD_NUMBER: _ClassVar[int]
    BANDS_FIELD_NUMBER: _ClassVar[int]
    from_us: int
    until_us: int
    estimated_us: int
    tariff_version: int
    weight_ppm: int
    bands: _containers.RepeatedCompositeFieldContainer[Band]
    def __init__(self, from_us: _Optional[int] = ..., until_us: _Optional[int] = ..., estimated_us: _Optional[int] = ..., tariff_version: _Optional[int] = ..., weight_ppm: _Optional[int] = ..., bands: _Optional[_Iterable[_Union[Band, _Mapping]]] = ...) -> None: ...

class Band(_message.Message):
    __slots__ = ("devices_us", "busy_us")
    DEVICES_US_FIELD_NUMBER: _ClassVar[int]
    BUSY_US_FIELD_NUMBER: _ClassVar[int]
    devices_us: int
    busy_us: int
    def __init__(self, devices_us: _Optional[int] = ..., busy_us: _Optional[int] = ...) -> None: ...

class StatementRequest(_message.Message):
    __slots__ = ("from_us", "until_us")
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    from_us: int
    until_us: int
    def __init__(self, from_us: _Optional[int] = ..., until_us: _Optional[int] = ...) -> None: ...

class PricesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReceiptsRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("since_size",)
    SINCE_SIZE_FIELD_NUMBER: _ClassVar[int]
    since_size: int
    def __init__(self, since_size: _Optional[int] = ...) -> None: ...

class ExportFocusRequest(_message.Message):
    __slots__ = ("dataset", "format", "from_us", "until_us")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    format: str
    from_us: int
    until_us: int
    def __init__(self, dataset: _Optional[str] = ..., format: _Optional[str] = ..., from_us: _Optional[int] = ..., until_us: _Optional[int] = ...) -> None: ...

class LogCheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LogCheckpointReply(_message.Message):
    __slots__ = ("note", "key")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    note: str
    key: str
    def __init__(self, note: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class AuthorizeRequest(_message.Message):
    __slots__ = ("request_id", "hold_id", "amount_uhs", "service", "accelerators", "models", "operators", "ttl_us", "minimum_uhs", "key_id", "wanted")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_UHS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    TTL_US_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_UHS_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    hold_id: str
    amount_uhs: int
    service: str
    accelerators: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedScalarFieldContainer[str]
    operators: _containers.RepeatedScalarFieldContainer[str]
    ttl_us: int
    minimum_uhs: int
    key_id: str
    wanted: Wanted
    def __init__(self, request_id: _Optional[str] = ..., hold_id: _Optional[str] = ..., amount_uhs: _Optional[int] = ..., service: _Optional[str] = ..., accelerators: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[str]] = ..., operators: _Optional[_Iterable[str]] = ..., ttl_us: _Optional[int] = ..., minimum_uhs: _Optional[int] = ..., key_id: _Optional[str] = ..., wanted: _Optional[_Union[Wanted, _Mapping]] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("call_id", "key_id", "model", "accelerator", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "started_at_us", "ended_at_us", "ended", "covered", "rate_version", "packages", "tags")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    COVERED_FIELD_NUMBER: _ClassVar[int]
    RATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    key_id: str
    model: str
    accelerator: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    started_at_us: int
    ended_at_us: int
    ended: str
    covered: bool
    rate_version: int
    packages: _containers.RepeatedCompositeFieldContainer[PackageLimit]
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, call_id: _Optional[str] = ..., key_id: _Optional[str] = ..., model: _Optional[str] = ..., accelerator: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., started_at_us: _Optional[int] = ..., ended_at_us: _Optional[int] = ..., ended: _Optional[str] = ..., covered: _Optional[bool] = ..., rate_version: _Optional[int] = ..., packages: _Optional[_Iterable[_Union[PackageLimit, _Mapping]]] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class UpdateHoldRequest(_message.Message):
    __slots__ = ("hold_id", "seq", "used_uhs", "more_uhs", "ttl_us", "minimum_uhs", "calls", "wanted")
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    USED_UHS_FIELD_NUMBER: _ClassVar[int]
    MORE_UHS_FIELD_NUMBER: _ClassVar[int]
    TTL_US_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_UHS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    hold_id: str
    seq: int
    used_uhs: int
    more_uhs: int
    ttl_us: int
    minimum_uhs: int
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    wanted: Wanted
    def __init__(self, hold_id: _Optional[str] = ..., seq: _Optional[int] = ..., used_uhs: _Optional[int] = ..., more_uhs: _Optional[int] = ..., ttl_us: _Optional[int] = ..., minimum_uhs: _Optional[int] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., wanted: _Optional[_Union[Wanted, _Mapping]] = ...) -> None: ...

class SettleHoldRequest(_message.Message):
    __slots__ = ("hold_id", "seq", "used_uhs", "calls")
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    USED_UHS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    hold_id: str
    seq: int
    used_uhs: int
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    def __init__(self, hold_id: _Optional[str] = ..., seq: _Optional[int] = ..., used_uhs: _Optional[int] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ...) -> None: ...

class ReleaseHoldRequest(_message.Message):
    __slots__ = ("hold_id", "seq")
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    hold_id: str
    seq: int
    def __init__(self, hold_id: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class RecordCallsRequest(_message.Message):
    __slots__ = ("calls",)
    CALLS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    def __init__(self, calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ...) -> None: ...

class KeepUsageRequest(_message.Message):
    __slots__ = ("hold_id", "call", "code", "reason")
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    hold_id: str
    call: Call
    code: str
    reason: str
    def __init__(self, hold_id: _Optional[str] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ListOpenUsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenUsage(_message.Message):
    __slots__ = ("account_id", "hold_id", "call", "code", "reason", "kept_at_us")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    HOLD_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEPT_AT_US_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    hold_id: str
    call: Call
    code: str
    reason: str
    kept_at_us: int
    def __init__(self, account_id: _Optional[str] = ..., hold_id: _Optional[str] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ..., kept_at_us: _Optional[int] = ...) -> None: ...

class ListOpenUsageReply(_message.Message):
    __slots__ = ("usage", "unreported_calls")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    UNREPORTED_CALLS_FIELD_NUMBER: _ClassVar[int]
    usage: _containers.RepeatedCompositeFieldContainer[OpenUsage]
    unreported_calls: int
    def __init__(self, usage: _Optional[_Iterable[_Union[OpenUsage, _Mapping]]] = ..., unreported_calls: _Optional[int] = ...) -> None: ...

class CloseUsageRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "call_id", "write_off", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    WRITE_OFF_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    call_id: str
    write_off: bool
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., call_id: _Optional[str] = ..., write_off: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class Rate(_message.Message):
    __slots__ = ("model", "version", "accelerator", "input_uhs_per_mtok", "cached_uhs_per_mtok", "output_uhs_per_mtok", "reasoning_uhs_per_mtok")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    INPUT_UHS_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    CACHED_UHS_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_UHS_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    REASONING_UHS_PER_MTOK_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    accelerator: str
    input_uhs_per_mtok: int
    cached_uhs_per_mtok: int
    output_uhs_per_mtok: int
    reasoning_uhs_per_mtok: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., accelerator: _Optional[str] = ..., input_uhs_per_mtok: _Optional[int] = ..., cached_uhs_per_mtok: _Optional[int] = ..., output_uhs_per_mtok: _Optional[int] = ..., reasoning_uhs_per_mtok: _Optional[int] = ...) -> None: ...

class EngineArg(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("name", "source", "accelerators", "devices", "replicas_min", "replicas_max", "ttft_objective_us", "dedicated_to", "max_context", "engine_args", "parent", "engine")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_MIN_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_MAX_FIELD_NUMBER: _ClassVar[int]
    TTFT_OBJECTIVE_US_FIELD_NUMBER: _ClassVar[int]
    DEDICATED_TO_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_ARGS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    accelerators: _containers.RepeatedScalarFieldContainer[str]
    devices: int
    replicas_min: int
    replicas_max: int
    ttft_objective_us: int
    dedicated_to: str
    max_context: int
    engine_args: _containers.RepeatedCompositeFieldContainer[EngineArg]
    parent: str
    engine: str
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., accelerators: _Optional[_Iterable[str]] = ..., devices: _Optional[int] = ..., replicas_min: _Optional[int] = ..., replicas_max: _Optional[int] = ..., ttft_objective_us: _Optional[int] = ..., dedicated_to: _Optional[str] = ..., max_context: _Optional[int] = ..., engine_args: _Optional[_Iterable[_Union[EngineArg, _Mapping]]] = ..., parent: _Optional[str] = ..., engine: _Optional[str] = ...) -> None: ...

class OfferModelRequest(_message.Message):
    __slots__ = ("request_id", "spec", "rates")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: ModelSpec
    rates: _containers.RepeatedCompositeFieldContainer[Rate]
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., rates: _Optional[_Iterable[_Union[Rate, _Mapping]]] = ...) -> None: ...

class ScaleModelRequest(_message.Message):
    __slots__ = ("request_id", "model", "replicas_min", "replicas_max")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_MIN_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_MAX_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    replicas_min: int
    replicas_max: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., replicas_min: _Optional[int] = ..., replicas_max: _Optional[int] = ...) -> None: ...

class WithdrawModelRequest(_message.Message):
    __slots__ = ("request_id", "model")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "state", "reason", "replicas_ready", "replicas", "running", "waiting", "ttft_p50_us", "rates", "rate_version", "price_microcny_per_ct", "dedicated_to", "max_context", "offered_at_us", "changed", "replicas_min", "replicas_max", "accelerators", "devices", "spec", "parent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_READY_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TTFT_P50_US_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    RATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRICE_MICROCNY_PER_CT_FIELD_NUMBER: _ClassVar[int]
    DEDICATED_TO_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    OFFERED_AT_US_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_MIN_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_MAX_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    reason: str
    replicas_ready: int
    replicas: int
    running: int
    waiting: int
    ttft_p50_us: int
    rates: _containers.RepeatedCompositeFieldContainer[Rate]
    rate_version: int
    price_microcny_per_ct: int
    dedicated_to: str
    max_context: int
    offered_at_us: int
    changed: int
    replicas_min: int
    replicas_max: int
    accelerators: _containers.RepeatedScalarFieldContainer[str]
    devices: int
    spec: ModelSpec
    parent: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., replicas_ready: _Optional[int] = ..., replicas: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., ttft_p50_us: _Optional[int] = ..., rates: _Optional[_Iterable[_Union[Rate, _Mapping]]] = ..., rate_version: _Optional[int] = ..., price_microcny_per_ct: _Optional[int] = ..., dedicated_to: _Optional[str] = ..., max_context: _Optional[int] = ..., offered_at_us: _Optional[int] = ..., changed: _Optional[int] = ..., replicas_min: _Optional[int] = ..., replicas_max: _Optional[int] = ..., accelerators: _Optional[_Iterable[str]] = ..., devices: _Optional[int] = ..., spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., parent: _Optional[str] = ...) -> None: ...

class ListModelsReply(_message.Message):
    __slots__ = ("models", "endpoints")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., endpoints: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportServingRequest(_message.Message):
    __slots__ = ("reporter", "replicas", "models", "queues", "endpoint")
    REPORTER_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    reporter: str
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    queues: _containers.RepeatedCompositeFieldContainer[ModelQueue]
    endpoint: str
    def __init__(self, reporter: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., queues: _Optional[_Iterable[_Union[ModelQueue, _Mapping]]] = ..., endpoint: _Optional[str] = ...) -> None: ...

class ReportServingReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Replica(_message.Message):
    __slots__ = ("replica_id", "model", "version", "state", "reason", "address", "tls_fingerprint", "accelerator", "dedicated_to", "lease_id", "running", "waiting", "capacity", "ttft_p50_us", "ttft_p99_us", "started_at_us", "kv_used_ppm", "unreported_calls", "max_context", "adapters", "abilities")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TLS_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEDICATED_TO_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    TTFT_P50_US_FIELD_NUMBER: _ClassVar[int]
    TTFT_P99_US_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    KV_USED_PPM_FIELD_NUMBER: _ClassVar[int]
    UNREPORTED_CALLS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ABILITIES_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model: str
    version: str
    state: str
    reason: str
    address: str
    tls_fingerprint: str
    accelerator: str
    dedicated_to: str
    lease_id: str
    running: int
    waiting: int
    capacity: int
    ttft_p50_us: int
    ttft_p99_us: int
    started_at_us: int
    kv_used_ppm: int
    unreported_calls: int
    max_context: int
    adapters: _containers.RepeatedScalarFieldContainer[str]
    abilities: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, replica_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., address: _Optional[str] = ..., tls_fingerprint: _Optional[str] = ..., accelerator: _Optional[str] = ..., dedicated_to: _Optional[str] = ..., lease_id: _Optional[str] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., capacity: _Optional[int] = ..., ttft_p50_us: _Optional[int] = ..., ttft_p99_us: _Optional[int] = ..., started_at_us: _Optional[int] = ..., kv_used_ppm: _Optional[int] = ..., unreported_calls: _Optional[int] = ..., max_context: _Optional[int] = ..., adapters: _Optional[_Iterable[str]] = ..., abilities: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("model", "state", "reason", "wanted")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    model: str
    state: str
    reason: str
    wanted: int
    def __init__(self, model: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., wanted: _Optional[int] = ...) -> None: ...

class ModelQueue(_message.Message):
    __slots__ = ("model", "waiting", "running", "oldest_us")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    OLDEST_US_FIELD_NUMBER: _ClassVar[int]
    model: str
    waiting: int
    running: int
    oldest_us: int
    def __init__(self, model: _Optional[str] = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., oldest_us: _Optional[int] = ...) -> None: ...

class WatchServingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServingBoard(_message.Message):
    __slots__ = ("at_us", "replicas", "models", "queues", "endpoints")
    AT_US_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    at_us: int
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    queues: _containers.RepeatedCompositeFieldContainer[ModelQueue]
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, at_us: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., queues: _Optional[_Iterable[_Union[ModelQueue, _Mapping]]] = ..., endpoints: _Optional[_Iterable[str]] = ...) -> None: ...

class CallerOfRequest(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    def __init__(self, key_id: _Optional[str] = ...) -> None: ...

class CallerOfReply(_message.Message):
    __slots__ = ("key_id", "account_id", "secret_sha256", "operator", "revoked", "expires_at_us", "limited", "plan", "tier_rank", "free_uhs", "models", "may_call", "price_microcny_per_ct", "name", "limit_uhs", "spent_uhs", "requests_per_min", "tokens_per_min", "held_uhs", "limits", "role", "project", "member", "dead", "packages", "suspended", "tags")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_SHA256_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    LIMITED_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    TIER_RANK_FIELD_NUMBER: _ClassVar[int]
    FREE_UHS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MAY_CALL_FIELD_NUMBER: _ClassVar[int]
    PRICE_MICROCNY_PER_CT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    SPENT_UHS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MIN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MIN_FIELD_NUMBER: _ClassVar[int]
    HELD_UHS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    account_id: str
    secret_sha256: str
    operator: bool
    revoked: bool
    expires_at_us: int
    limited: bool
    plan: str
    tier_rank: int
    free_uhs: int
    models: _containers.RepeatedCompositeFieldContainer[Entitlement]
    may_call: bool
    price_microcny_per_ct: int
    name: str
    limit_uhs: int
    spent_uhs: int
    requests_per_min: int
    tokens_per_min: int
    held_uhs: int
    limits: _containers.RepeatedCompositeFieldContainer[Limit]
    role: str
    project: str
    member: str
    dead: str
    packages: _containers.RepeatedCompositeFieldContainer[PackageRoom]
    suspended: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key_id: _Optional[str] = ..., account_id: _Optional[str] = ..., secret_sha256: _Optional[str] = ..., operator: _Optional[bool] = ..., revoked: _Optional[bool] = ..., expires_at_us: _Optional[int] = ..., limited: _Optional[bool] = ..., plan: _Optional[str] = ..., tier_rank: _Optional[int] = ..., free_uhs: _Optional[int] = ..., models: _Optional[_Iterable[_Union[Entitlement, _Mapping]]] = ..., may_call: _Optional[bool] = ..., price_microcny_per_ct: _Optional[int] = ..., name: _Optional[str] = ..., limit_uhs: _Optional[int] = ..., spent_uhs: _Optional[int] = ..., requests_per_min: _Optional[int] = ..., tokens_per_min: _Optional[int] = ..., held_uhs: _Optional[int] = ..., limits: _Optional[_Iterable[_Union[Limit, _Mapping]]] = ..., role: _Optional[str] = ..., project: _Optional[str] = ..., member: _Optional[str] = ..., dead: _Optional[str] = ..., packages: _Optional[_Iterable[_Union[PackageRoom, _Mapping]]] = ..., suspended: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class Entitlement(_message.Message):
    __slots__ = ("model", "free_uhs", "covered", "packaged")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FREE_UHS_FIELD_NUMBER: _ClassVar[int]
    COVERED_FIELD_NUMBER: _ClassVar[int]
    PACKAGED_FIELD_NUMBER: _ClassVar[int]
    model: str
    free_uhs: int
    covered: bool
    packaged: bool
    def __init__(self, model: _Optional[str] = ..., free_uhs: _Optional[int] = ..., covered: _Optional[bool] = ..., packaged: _Optional[bool] = ...) -> None: ...

class CreateKeyRequest(_message.Message):
    __slots__ = ("request_id", "secret_sha256", "name", "operator", "limit_uhs", "expires_at_us", "scopes", "requests_per_min", "tokens_per_min", "project", "member", "limits", "tags")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_SHA256_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MIN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MIN_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    secret_sha256: str
    name: str
    operator: bool
    limit_uhs: int
    expires_at_us: int
    scopes: _containers.RepeatedScalarFieldContainer[str]
    requests_per_min: int
    tokens_per_min: int
    project: str
    member: str
    limits: _containers.RepeatedCompositeFieldContainer[LimitTerms]
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., secret_sha256: _Optional[str] = ..., name: _Optional[str] = ..., operator: _Optional[bool] = ..., limit_uhs: _Optional[int] = ..., expires_at_us: _Optional[int] = ..., scopes: _Optional[_Iterable[str]] = ..., requests_per_min: _Optional[int] = ..., tokens_per_min: _Optional[int] = ..., project: _Optional[str] = ..., member: _Optional[str] = ..., limits: _Optional[_Iterable[_Union[LimitTerms, _Mapping]]] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class LimitTerms(_message.Message):
    __slots__ = ("period", "unit", "amount", "warning", "zone", "starts_on")
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    STARTS_ON_FIELD_NUMBER: _ClassVar[int]
    period: str
    unit: str
    amount: int
    warning: bool
    zone: str
    starts_on: int
    def __init__(self, period: _Optional[str] = ..., unit: _Optional[str] = ..., amount: _Optional[int] = ..., warning: _Optional[bool] = ..., zone: _Optional[str] = ..., starts_on: _Optional[int] = ...) -> None: ...

class SetLimitRequest(_message.Message):
    __slots__ = ("request_id", "key_id", "terms", "remove", "project", "member")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    key_id: str
    terms: LimitTerms
    remove: bool
    project: str
    member: str
    def __init__(self, request_id: _Optional[str] = ..., key_id: _Optional[str] = ..., terms: _Optional[_Union[LimitTerms, _Mapping]] = ..., remove: _Optional[bool] = ..., project: _Optional[str] = ..., member: _Optional[str] = ...) -> None: ...

class ListLimitsRequest(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    def __init__(self, key_id: _Optional[str] = ...) -> None: ...

class Limit(_message.Message):
    __slots__ = ("whose", "name", "period", "unit", "amount", "hard", "zone", "starts_on", "by_operator", "used", "held", "left", "used_before", "from_us", "resets_at_us")
    WHOSE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    HARD_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    STARTS_ON_FIELD_NUMBER: _ClassVar[int]
    BY_OPERATOR_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    USED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    RESETS_AT_US_FIELD_NUMBER: _ClassVar[int]
    whose: str
    name: str
    period: str
    unit: str
    amount: int
    hard: bool
    zone: str
    starts_on: int
    by_operator: bool
    used: int
    held: int
    left: int
    used_before: int
    from_us: int
    resets_at_us: int
    def __init__(self, whose: _Optional[str] = ..., name: _Optional[str] = ..., period: _Optional[str] = ..., unit: _Optional[str] = ..., amount: _Optional[int] = ..., hard: _Optional[bool] = ..., zone: _Optional[str] = ..., starts_on: _Optional[int] = ..., by_operator: _Optional[bool] = ..., used: _Optional[int] = ..., held: _Optional[int] = ..., left: _Optional[int] = ..., used_before: _Optional[int] = ..., from_us: _Optional[int] = ..., resets_at_us: _Optional[int] = ...) -> None: ...

class ListLimitsReply(_message.Message):
    __slots__ = ("limits",)
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    limits: _containers.RepeatedCompositeFieldContainer[Limit]
    def __init__(self, limits: _Optional[_Iterable[_Union[Limit, _Mapping]]] = ...) -> None: ...

class CreateKeyReply(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    def __init__(self, key_id: _Optional[str] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Key(_message.Message):
    __slots__ = ("key_id", "account_id", "name", "operator", "limit_uhs", "spent_uhs", "expires_at_us", "revoked", "scopes", "held_uhs", "requests_per_min", "tokens_per_min", "role", "project", "member", "dead", "organisation", "suspended", "wallets", "limits", "tags")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    SPENT_UHS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    HELD_UHS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MIN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MIN_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    WALLETS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    account_id: str
    name: str
    operator: bool
    limit_uhs: int
    spent_uhs: int
    expires_at_us: int
    revoked: bool
    scopes: _containers.RepeatedScalarFieldContainer[str]
    held_uhs: int
    requests_per_min: int
    tokens_per_min: int
    role: str
    project: str
    member: str
    dead: str
    organisation: str
    suspended: str
    wallets: _containers.RepeatedScalarFieldContainer[str]
    limits: _containers.RepeatedCompositeFieldContainer[Limit]
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key_id: _Optional[str] = ..., account_id: _Optional[str] = ..., name: _Optional[str] = ..., operator: _Optional[bool] = ..., limit_uhs: _Optional[int] = ..., spent_uhs: _Optional[int] = ..., expires_at_us: _Optional[int] = ..., revoked: _Optional[bool] = ..., scopes: _Optional[_Iterable[str]] = ..., held_uhs: _Optional[int] = ..., requests_per_min: _Optional[int] = ..., tokens_per_min: _Optional[int] = ..., role: _Optional[str] = ..., project: _Optional[str] = ..., member: _Optional[str] = ..., dead: _Optional[str] = ..., organisation: _Optional[str] = ..., suspended: _Optional[str] = ..., wallets: _Optional[_Iterable[str]] = ..., limits: _Optional[_Iterable[_Union[Limit, _Mapping]]] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class ListKeysReply(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    def __init__(self, keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ...) -> None: ...

class RevokeKeyRequest(_message.Message):
    __slots__ = ("request_id", "key_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    key_id: str
    def __init__(self, request_id: _Optional[str] = ..., key_id: _Optional[str] = ...) -> None: ...

class GetOrganisationRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateProjectRequest(_message.Message):
    __slots__ = ("request_id", "project", "wallet", "name", "tags")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    WALLET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    project: str
    wallet: str
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., project: _Optional[str] = ..., wallet: _Optional[str] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class CloseProjectRequest(_message.Message):
    __slots__ = ("request_id", "project")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    project: str
    def __init__(self, request_id: _Optional[str] = ..., project: _Optional[str] = ...) -> None: ...

class AddMemberRequest(_message.Message):
    __slots__ = ("request_id", "member", "role", "name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    member: str
    role: str
    name: str
    def __init__(self, request_id: _Optional[str] = ..., member: _Optional[str] = ..., role: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class SetRoleRequest(_message.Message):
    __slots__ = ("request_id", "member", "role")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    member: str
    role: str
    def __init__(self, request_id: _Optional[str] = ..., member: _Optional[str] = ..., role: _Optional[str] = ...) -> None: ...

class RemoveMemberRequest(_message.Message):
    __slots__ = ("request_id", "member")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    member: str
    def __init__(self, request_id: _Optional[str] = ..., member: _Optional[str] = ...) -> None: ...

class OpenAccountRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "name", "plan", "credit_limit_uhs", "weight_ppm", "cohort", "organisation")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    CREDIT_LIMIT_UHS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PPM_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    name: str
    plan: str
    credit_limit_uhs: int
    weight_ppm: int
    cohort: str
    organisation: str
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., name: _Optional[str] = ..., plan: _Optional[str] = ..., credit_limit_uhs: _Optional[int] = ..., weight_ppm: _Optional[int] = ..., cohort: _Optional[str] = ..., organisation: _Optional[str] = ...) -> None: ...

class SuspendAccountRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "reason", "organisation")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    reason: str
    organisation: bool
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., reason: _Optional[str] = ..., organisation: _Optional[bool] = ...) -> None: ...

class ResumeAccountRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "organisation")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    organisation: bool
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., organisation: _Optional[bool] = ...) -> None: ...

class CloseAccountRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "reason", "balance", "organisation")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    reason: str
    balance: str
    organisation: bool
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., reason: _Optional[str] = ..., balance: _Optional[str] = ..., organisation: _Optional[bool] = ...) -> None: ...

class SetShareRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "weight_ppm", "cohort")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PPM_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    weight_ppm: int
    cohort: str
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., weight_ppm: _Optional[int] = ..., cohort: _Optional[str] = ...) -> None: ...

class SetCohortRequest(_message.Message):
    __slots__ = ("request_id", "cohort", "weight_ppm")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PPM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    cohort: str
    weight_ppm: int
    def __init__(self, request_id: _Optional[str] = ..., cohort: _Optional[str] = ..., weight_ppm: _Optional[int] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("accelerator", "account", "cohort", "nominal", "borrow_max", "lend_max", "shared", "borrowed", "nominal_in_all")
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    NOMINAL_FIELD_NUMBER: _ClassVar[int]
    BORROW_MAX_FIELD_NUMBER: _ClassVar[int]
    LEND_MAX_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    BORROWED_FIELD_NUMBER: _ClassVar[int]
    NOMINAL_IN_ALL_FIELD_NUMBER: _ClassVar[int]
    accelerator: str
    account: str
    cohort: str
    nominal: int
    borrow_max: int
    lend_max: int
    shared: int
    borrowed: int
    nominal_in_all: int
    def __init__(self, accelerator: _Optional[str] = ..., account: _Optional[str] = ..., cohort: _Optional[str] = ..., nominal: _Optional[int] = ..., borrow_max: _Optional[int] = ..., lend_max: _Optional[int] = ..., shared: _Optional[int] = ..., borrowed: _Optional[int] = ..., nominal_in_all: _Optional[int] = ...) -> None: ...

class ListQuotasRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListQuotasReply(_message.Message):
    __slots__ = ("quotas",)
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    def __init__(self, quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ...) -> None: ...

class SetQuotaRequest(_message.Message):
    __slots__ = ("request_id", "accelerator", "account", "cohort", "nominal", "borrow_max", "lend_max")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    NOMINAL_FIELD_NUMBER: _ClassVar[int]
    BORROW_MAX_FIELD_NUMBER: _ClassVar[int]
    LEND_MAX_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    accelerator: str
    account: str
    cohort: str
    nominal: int
    borrow_max: int
    lend_max: int
    def __init__(self, request_id: _Optional[str] = ..., accelerator: _Optional[str] = ..., account: _Optional[str] = ..., cohort: _Optional[str] = ..., nominal: _Optional[int] = ..., borrow_max: _Optional[int] = ..., lend_max: _Optional[int] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Policy(_message.Message):
    __slots__ = ("in_force_json", "filed_json")
    IN_FORCE_JSON_FIELD_NUMBER: _ClassVar[int]
    FILED_JSON_FIELD_NUMBER: _ClassVar[int]
    in_force_json: str
    filed_json: str
    def __init__(self, in_force_json: _Optional[str] = ..., filed_json: _Optional[str] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("request_id", "changes_json", "as_filed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGES_JSON_FIELD_NUMBER: _ClassVar[int]
    AS_FILED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    changes_json: str
    as_filed: bool
    def __init__(self, request_id: _Optional[str] = ..., changes_json: _Optional[str] = ..., as_filed: _Optional[bool] = ...) -> None: ...

class GrantRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "amount_uhs", "origin", "scope", "lifetime_us")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_UHS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_US_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    amount_uhs: int
    origin: str
    scope: Scope
    lifetime_us: int
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., amount_uhs: _Optional[int] = ..., origin: _Optional[str] = ..., scope: _Optional[_Union[Scope, _Mapping]] = ..., lifetime_us: _Optional[int] = ...) -> None: ...

class VoidLotRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "lot_id", "amount_uhs", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    LOT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_UHS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    lot_id: str
    amount_uhs: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., lot_id: _Optional[str] = ..., amount_uhs: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class CreditInvoiceRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "invoice_id", "amount_microcny", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    INVOICE_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    invoice_id: str
    amount_microcny: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., invoice_id: _Optional[str] = ..., amount_microcny: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RecordPaymentRequest(_message.Message):
    __slots__ = ("request_id", "account_id", "amount_microcny", "payment_ref")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_REF_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    account_id: str
    amount_microcny: int
    payment_ref: str
    def __init__(self, request_id: _Optional[str] = ..., account_id: _Optional[str] = ..., amount_microcny: _Optional[int] = ..., payment_ref: _Optional[str] = ...) -> None: ...

class ListAccountsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAccountsReply(_message.Message):
    __slots__ = ("accounts",)
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    accounts: _containers.RepeatedCompositeFieldContainer[BalanceReply]
    def __init__(self, accounts: _Optional[_Iterable[_Union[BalanceReply, _Mapping]]] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Node(_message.Message):
    __slots__ = ("node_id", "accelerator", "pool", "devices", "free", "state", "dedicated_to", "leases", "units", "fraction", "free_units", "division")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEDICATED_TO_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    FREE_UNITS_FIELD_NUMBER: _ClassVar[int]
    DIVISION_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    accelerator: str
    pool: str
    devices: int
    free: int
    state: str
    dedicated_to: str
    leases: _containers.RepeatedScalarFieldContainer[str]
    units: int
    fraction: _containers.RepeatedScalarFieldContainer[int]
    free_units: _containers.RepeatedScalarFieldContainer[int]
    division: str
    def __init__(self, node_id: _Optional[str] = ..., accelerator: _Optional[str] = ..., pool: _Optional[str] = ..., devices: _Optional[int] = ..., free: _Optional[int] = ..., state: _Optional[str] = ..., dedicated_to: _Optional[str] = ..., leases: _Optional[_Iterable[str]] = ..., units: _Optional[int] = ..., fraction: _Optional[_Iterable[int]] = ..., free_units: _Optional[_Iterable[int]] = ..., division: _Optional[str] = ...) -> None: ...

class ListNodesReply(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...

class ListLeasesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Share(_message.Message):
    __slots__ = ("node_id", "devices")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    devices: int
    def __init__(self, node_id: _Optional[str] = ..., devices: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "job_id", "account_id", "accelerator", "shares", "state", "fraction")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    job_id: str
    account_id: str
    accelerator: str
    shares: _containers.RepeatedCompositeFieldContainer[Share]
    state: str
    fraction: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lease_id: _Optional[str] = ..., job_id: _Optional[str] = ..., account_id: _Optional[str] = ..., accelerator: _Optional[str] = ..., shares: _Optional[_Iterable[_Union[Share, _Mapping]]] = ..., state: _Optional[str] = ..., fraction: _Optional[_Iterable[int]] = ...) -> None: ...

class ListLeasesReply(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    def __init__(self, leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("node_id", "grace_us", "undo")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GRACE_US_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    grace_us: int
    undo: bool
    def __init__(self, node_id: _Optional[str] = ..., grace_us: _Optional[int] = ..., undo: _Optional[bool] = ...) -> None: ...

class ClosePeriodRequest(_message.Message):
    __slots__ = ("request_id", "period")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    period: str
    def __init__(self, request_id: _Optional[str] = ..., period: _Optional[str] = ...) -> None: ...

class AskPaymentRequest(_message.Message):
    __slots__ = ("request_id", "amount_uhs", "provider", "bundle", "subscription")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_UHS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    amount_uhs: int
    provider: str
    bundle: str
    subscription: str
    def __init__(self, request_id: _Optional[str] = ..., amount_uhs: _Optional[int] = ..., provider: _Optional[str] = ..., bundle: _Optional[str] = ..., subscription: _Optional[str] = ...) -> None: ...

class GetPaymentRequest(_message.Message):
    __slots__ = ("payment_id",)
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    payment_id: str
    def __init__(self, payment_id: _Optional[str] = ...) -> None: ...

class ListPaymentsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class SetAutoTopUpRequest(_message.Message):
    __slots__ = ("request_id", "on", "threshold_uhs", "runway_us", "amount_uhs", "month_max_uhs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_UHS_FIELD_NUMBER: _ClassVar[int]
    RUNWAY_US_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_UHS_FIELD_NUMBER: _ClassVar[int]
    MONTH_MAX_UHS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    on: bool
    threshold_uhs: int
    runway_us: int
    amount_uhs: int
    month_max_uhs: int
    def __init__(self, request_id: _Optional[str] = ..., on: _Optional[bool] = ..., threshold_uhs: _Optional[int] = ..., runway_us: _Optional[int] = ..., amount_uhs: _Optional[int] = ..., month_max_uhs: _Optional[int] = ...) -> None: ...

class BookPaymentRequest(_message.Message):
    __slots__ = ("payment_id", "payment_ref", "amount_microcny")
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_REF_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_MICROCNY_FIELD_NUMBER: _ClassVar[int]
    payment_id: str
    payment_ref: str
    amount_microcny: int
    def __init__(self, payment_id: _Optional[str] = ..., payment_ref: _Optional[str] = ..., amount_microcny: _Optional[int] = ...) -> None: ...

class RefundPaymentRequest(_message.Message):
    __slots__ = ("request_id", "payment_id", "amount_uhs", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_UHS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    payment_id: str
    amount_uhs: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., payment_id: _Optional[str] = ..., amount_uhs: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ListSuspenseRequest(_message.Message):
    __slots__ = ("settled",)
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    settled: bool
    def __init__(self, settled: _Optional[bool] = ...) -> None: ...

class SettleSuspenseRequest(_message.Message):
    __slots__ = ("request_id", "suspense_id", "how", "account_id", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SUSPENSE_ID_FIELD_NUMBER: _ClassVar[int]
    HOW_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    suspense_id: str
    how: str
    account_id: str
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., suspense_id: _Optional[str] = ..., how: _Optional[str] = ..., account_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReconcilePaymentsRequest(_message.Message):
    __slots__ = ("from_us", "until_us")
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    from_us: int
    until_us: int
    def __init__(self, from_us: _Optional[int] = ..., until_us: _Optional[int] = ...) -> None: ...

class PaymentNoticeRequest(_message.Message):
    __slots__ = ("provider", "headers", "body")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    provider: str
    headers: _containers.ScalarMap[str, str]
    body: bytes
    def __init__(self, provider: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., body: _Optional[bytes] = ...) -> None: ...

class PaymentNoticeReply(_message.Message):
    __slots__ = ("answer",)
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    answer: bytes
    def __init__(self, answer: _Optional[bytes] = ...) -> None: ...

class AddEndpointRequest(_message.Message):
    __slots__ = ("request_id", "url", "kinds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    url: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., url: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class ListEndpointsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveEndpointRequest(_message.Message):
    __slots__ = ("endpoint_id",)
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    endpoint_id: str
    def __init__(self, endpoint_id: _Optional[str] = ...) -> None: ...

class RotateSecretRequest(_message.Message):
    __slots__ = ("endpoint_id",)
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    endpoint_id: str
    def __init__(self, endpoint_id: _Optional[str] = ...) -> None: ...

class TestEndpointRequest(_message.Message):
    __slots__ = ("request_id", "endpoint_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    endpoint_id: str
    def __init__(self, request_id: _Optional[str] = ..., endpoint_id: _Optional[str] = ...) -> None: ...

class ListDeliveriesRequest(_message.Message):
    __slots__ = ("endpoint_id", "limit")
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    endpoint_id: str
    limit: int
    def __init__(self, endpoint_id: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class RedeliverRequest(_message.Message):
    __slots__ = ("endpoint_id", "notice_id")
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    NOTICE_ID_FIELD_NUMBER: _ClassVar[int]
    endpoint_id: str
    notice_id: str
    def __init__(self, endpoint_id: _Optional[str] = ..., notice_id: _Optional[str] = ...) -> None: ...
