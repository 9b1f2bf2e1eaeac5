"""Flags are derived from the option dataclasses, a configuration file says the same, and mistakes are one clear line."""

import dataclasses

import pytest

from octavo.cli.flags import Parser, add_engine_flags, flag_name, given_engine_options, parse_bytes, parse_serve
from octavo.config import ENGINE_GROUPS, EngineOptions, HostOptions, ServerOptions, engine_options
from octavo.errors import ConfigError


@pytest.fixture(autouse=True)
def no_api_key(monkeypatch):
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_serve(list(argv))
    return str(caught.value)


def test_no_flags_give_every_default():
    assert parse_serve([]) == (EngineOptions(), ServerOptions())


def test_every_option_has_a_flag(capsys):
    with pytest.raises(SystemExit):
        parse_serve(["--help"])
    text = capsys.readouterr().out.replace("--[no-]", "--")
    for group in (*ENGINE_GROUPS.values(), ServerOptions):
        for field in dataclasses.fields(group):
            assert flag_name(field.name) in text


@pytest.mark.parametrize(
    ("words", "group", "name", "value"),
    [
        ("--max-model-len 4096", "model", "max_model_len", 4096),
        ("--dtype float32", "model", "dtype", "float32"),
        ("--quantization int4", "model", "quantization", "int4"),
        ("--activation-bits 8", "model", "activation_bits", 8),
        ("--kv-cache-dtype int8", "cache", "kv_cache_dtype", "int8"),
        ("--seed -5", "model", "seed", -5),
        ("--kv-cache-memory-bytes 4G", "cache", "kv_cache_memory_bytes", 4 * 2**30),
        ("--kv-cache-memory-bytes 1e9", "cache", "kv_cache_memory_bytes", 10**9),
        ("--gpu-memory-utilization 0.5", "cache", "gpu_memory_utilization", 0.5),
        ("--block-size 32", "cache", "block_size", 32),
        ("--no-enable-prefix-caching", "cache", "enable_prefix_caching", False),
        ("--enable-prefix-caching", "cache", "enable_prefix_caching", True),
        ("--max-num-seqs=7", "scheduler", "max_num_seqs", 7),
        ("--scheduling-policy priority", "scheduler", "scheduling_policy", "priority"),
        ("-tp 1", "device", "tensor_parallel_size", 1),
        ("--pipeline-parallel-size 1", "device", "pipeline_parallel_size", 1),
        ("--enforce-eager", "device", "enforce_eager", True),
        ("--attention-backend flashinfer", "device", "attention_backend", "flashinfer"),
        ("--nnodes 2 -tp 2", "hosts", "nnodes", 2),
        ("--node-rank 1 --nnodes 2 -pp 2", "hosts", "node_rank", 1),
        ("--master-addr 10.0.0.1", "hosts", "master_addr", "10.0.0.1"),
        ("--master-port 1234", "hosts", "master_port", 1234),
        ("--distributed-executor-backend ray", "hosts", "distributed_executor_backend", "ray"),
    ],
)
def test_engine_flags_reach_their_group(words, group, name, value):
    engine, server = parse_serve(words.split())
    assert getattr(getattr(engine, group), name) == value
    assert server == ServerOptions()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--served-model-name a b", "served_model_name", ["a", "b"]),
        ("--host 0.0.0.0", "host", "0.0.0.0"),
        ("--port 0", "port", 0),
        ("--api-key k1 k2", "api_key", ["k1", "k2"]),
        ("--api-key k1 --api-key k2 k3", "api_key", ["k1", "k2", "k3"]),
        ("--served-model-name a --served-model-name b", "served_model_name", ["a", "b"]),
        ("--max-logprobs -1", "max_logprobs", -1),
        ("--max-body-bytes 1M", "max_body_bytes", 2**20),
        ("--shutdown-timeout 1.5", "shutdown_timeout", 1.5),
        ("--disable-log-stats", "disable_log_stats", True),
    ],
)
def test_server_flags_reach_the_server_alone(words, name, value):
    engine, server = parse_serve(words.split())
    assert getattr(server, name) == value
    assert engine == EngineOptions()


def test_model_may_be_positional_or_a_flag_or_both_the_same():
    for argv in (["some/model"], ["--model", "some/model"], ["some/model", "--model", "some/model"]):
        assert parse_serve(argv)[0].model.model == "some/model"


def test_two_different_models_are_refused():
    message = refused("one", "--model", "two")
    assert "one" in message and "two" in message


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--max-num-seq", "4"], ["unknown flag --max-num-seq", "did you mean --max-num-seqs?"]),
        (["--max-num-seq=4"], ["unknown flag --max-num-seq;"]),
        (["--swap-space", "4"], ["unknown flag --swap-space"]),
        (["--tensor-parallel", "2"], ["unknown flag --tensor-parallel", "--tensor-parallel-size"]),
        (["a", "b"], ["one value too many", "'b'"]),
        (["--port", "http"], ["--port", "whole number", "'http'"]),
        (["--port", "70000"], ["port", "[0, 65535]"]),
        (["--kv-cache-memory-bytes", "4Q"], ["--kv-cache-memory-bytes", "4G", "'4Q'"]),
        (["--block-size", "7"], ["--block-size", "8, 16, 32, 64, 128"]),
        (["--dtype", "int3"], ["--dtype", "bfloat16"]),
        (["--quantization", "awq"], ["--quantization", "auto, none, int8, int4, fp8", "'awq'"]),
        (["--dtype"], ["--dtype", "expected one argument"]),
        (["-pp", "0"], ["pipeline_parallel_size", "at least 1"]),
        (["-dp", "0"], ["data_parallel_size", "at least 1"]),
        (["-tp", "0"], ["tensor_parallel_size", "at least 1"]),
        (["--max-num-seqs", "0"], ["max_num_seqs", "at least 1"]),
        (["--nnodes", "0"], ["nnodes", "at least 1"]),
        (["--node-rank", "1"], ["node_rank", "less than nnodes=1"]),
        (["--nnodes", "2", "-tp", "2", "--node-rank", "-1"], ["node_rank", "at least 0"]),
        (["--master-port", "0"], ["master_port", "1 to 65535"]),
        (["--nnodes", "2"], ["nnodes=2", "1 ranks", "tensor_parallel_size=1", "pipeline_parallel_size=1"]),
        (["--nnodes", "2", "-tp", "3"], ["nnodes=2", "3 ranks"]),
        (["--nnodes", "2", "-tp", "2", "-dp", "2"], ["data_parallel_size and nnodes", "several servers"]),
        (["--distributed-executor-backend", "ray", "-dp", "2"], ["data_parallel_size", "ray", "several servers"]),
        (
            ["--distributed-executor-backend", "ray", "--nnodes", "2", "-tp", "2", "--node-rank", "1"],
            ["node_rank=1", "Ray starts the hosts"],
        ),
        (["--distributed-executor-backend", "mpi"], ["--distributed-executor-backend", "mp, ray", "'mpi'"]),
        (["--ssl-keyfile", "key.pem"], ["ssl_keyfile", "ssl_certfile"]),
        (["--ssl-keyfile", "missing.pem", "--ssl-certfile", "missing.pem"], ["ssl_keyfile", "missing.pem"]),
        (["--max-logprobs", "-2"], ["max_logprobs"]),
        (["--shutdown-timeout", "-1"], ["shutdown_timeout"]),
        (["--api-key", ""], ["api_key"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(argv, parts):
    message = refused(*argv)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512M", 512 * 2**20), ("1.5G", 3 * 2**29), ("2GiB", 2**31), ("3kb", 3072), ("1e9", 10**9), (7, 7)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5", "1..5G", "4 G B", "nan", "1e400", True])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError):
        parse_bytes(text)


def config_file(tmp_path, text: str) -> str:
    path = tmp_path / "octavo.yaml"
    path.write_text(text)
    return str(path)


def test_a_config_file_says_what_flags_say(tmp_path):
    path = config_file(
        tmp_path,
        "model: some/model\nmax-num-seqs: 9\nkv_cache_memory_bytes: 2G\nenable-prefix-caching: false\n"
        "served-model-name: one\nallowed-origins: [a, b]\nport: 81\nrevision: null\n",
    )
    engine, server = parse_serve(["--config", path])
    assert engine.model.model == "some/model" and engine.model.revision is None
    assert engine.scheduler.max_num_seqs == 9
    assert engine.cache.kv_cache_memory_bytes == 2**31 and engine.cache.enable_prefix_caching is False
    assert server.served_model_name == ["one"] and server.allowed_origins == ["a", "b"] and server.port == 81


def test_flags_win_over_the_config_file(tmp_path):
    path = config_file(tmp_path, "model: other\nport: 81\nenable-prefix-caching: false\n")
    engine, server = parse_serve(["mine", "--config", path, "--port", "82", "--enable-prefix-caching"])
    assert (engine.model.model, server.port, engine.cache.enable_prefix_caching) == ("mine", 82, True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("max-num-seq: 4", ["unknown key 'max-num-seq'", "max-num-seqs"]),
        ("config: other.yaml", ["unknown key 'config'"]),
        ("port: yes", ["port", "whole number"]),
        ("port: 1.5", ["port", "whole number"]),
        ("enable-prefix-caching: 1", ["enable-prefix-caching", "true or false"]),
        ("host: [a]", ["host", "text"]),
        ("dtype: int3", ["dtype", "bfloat16"]),
        ("port: 1\nport : 2\nmax_num_seqs: 1\nmax-num-seqs: 2", ["max-num-seqs is given twice"]),
        ("- a\n- b", ["option: value"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_a_bad_config_file_is_refused_by_name(tmp_path, text, parts):
    message = refused("--config", config_file(tmp_path, text))
    for part in ["octavo.yaml", *parts]:
        assert part in message


def test_a_missing_config_file_is_refused(tmp_path):
    assert "No such file" in refused("--config", str(tmp_path / "none.yaml"))


def test_the_api_key_comes_from_the_environment_unless_given(monkeypatch):
    monkeypatch.setenv("OCTAVO_API_KEY", "secret")
    assert parse_serve([])[1].api_key == ["secret"]
    assert parse_serve(["--api-key", "mine"])[1].api_key == ["mine"]


def torchrun(monkeypatch, **variables):
    for name, value in ({"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "1"} | variables).items():
        monkeypatch.setenv(name, value)


def test_torchruns_variables_stand_for_the_flags_of_hosts(monkeypatch):
    torchrun(monkeypatch, GROUP_RANK="1", GROUP_WORLD_SIZE="2", MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    hosts = parse_serve(["-tp", "2"])[0].hosts
    assert hosts == HostOptions(nnodes=2, node_rank=1, master_addr="10.0.0.1", master_port=1234)
    assert parse_serve(["-tp", "2", "--master-port", "5678"])[0].hosts.master_port == 5678, "a flag wins"


def test_torchrun_is_to_start_one_process_a_host(monkeypatch):
    torchrun(monkeypatch, LOCAL_WORLD_SIZE="2")
    assert "--nproc-per-node 1" in refused("-tp", "2")


def test_the_variables_say_nothing_where_torchrun_did_not_start_the_process(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert parse_serve([])[0].hosts == HostOptions()


def test_other_commands_get_only_what_was_given():
    parser = Parser("octavo test", "A test.")
    add_engine_flags(parser)
    assert given_engine_options(parser.parse_args([])) == {}
    given = given_engine_options(parser.parse_args(["--max-num-seqs", "4", "--no-enable-prefix-caching"]))
    assert given == {"max_num_seqs": 4, "enable_prefix_caching": False}
    assert engine_options(**given).scheduler.max_num_seqs == 4
    with pytest.raises(ConfigError, match="unknown flag --port"):
        parser.parse_args(["--port", "1"])
