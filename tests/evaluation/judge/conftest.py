from judge_server import served

__all__ = ["served"]
