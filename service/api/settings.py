"""`/v1/settings`: what the environment of this API process says."""

from fastapi import APIRouter

from service.api.deps import Admin, ServicesDep
from service.api.guard import GuardedRoute
from service.schemas.overview import SettingOut

router = APIRouter(prefix="/v1/settings", tags=["health"], route_class=GuardedRoute)


@router.get("")
def listing(services: ServicesDep, _: Admin) -> list[SettingOut]:
    """Every setting of this API process, as `unlearnd settings` lists them. Secrets are hidden."""
    return [SettingOut.model_validate(row) for row in services.settings.rows()]
