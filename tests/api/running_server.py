"""A real server process in which only the model is fake."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment
from server_process import ServerProcess

HERE = Path(__file__).parent


class RunningServer(ServerProcess):
    """`http_fakes`, for a tokenizer's folder and a model like "fake:step_s=0.002"."""

    def __init__(self, folder: Path, model: str, *options: str) -> None:
        command = [sys.executable, str(HERE / "http_fakes.py"), model, str(folder), *options]
        super().__init__(command, environment())

    def running(self) -> int:
        """How many requests the engine has now."""
        return int(self.client.get("/server_info").json()["internal_states"][0]["running"])
