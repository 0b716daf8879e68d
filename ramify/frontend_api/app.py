"""The ASGI application over one `Service`: routes, error handlers, limits. Holds no globals."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from ramify.frontend_api import routes_cache, routes_native, routes_openai
from ramify.frontend_api.auth import KeyCheck
from ramify.frontend_api.errors import (
    on_http_exception,
    on_query_error,
    on_request_error,
    on_unexpected,
)
from ramify.frontend_api.limits import BodyLimit
from ramify.frontend_api.service import Service
from ramify.srt.errors import RequestError


def create_app(service: Service, lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """The application. Bodies are read by hand and strictly, so FastAPI's schema pages are off."""
    app = FastAPI(title="ramify", openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    app.state.service = service
    app.include_router(routes_native.router)
    app.include_router(routes_openai.router)
    app.include_router(routes_cache.router)
    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_query_error)
    app.add_exception_handler(Exception, on_unexpected)
    app.add_middleware(BodyLimit, max_bytes=int(service.serve_config.max_body_mb * 2**20))
    if service.keys is not None:  # last, so that it is asked first
        app.add_middleware(KeyCheck, keys=service.keys, metrics=service.metrics)
    return app
