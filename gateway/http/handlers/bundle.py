"""``/v1/jobs/{job_id}/bundle``: the bundle of a failed job, to run it again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from tornado.iostream import StreamClosedError

from gateway.core.errors import NotFound
from gateway.core.formats import FORMATS
from gateway.http.base_handler.elsewhere import anywhere
from gateway.http.base_handler.handler import BaseHandler
from gateway.http.handlers.job_lookup import named_in_path
from gateway.http.schemas.bundle import bundle_response


class BundleHandler(BaseHandler):
    """Sends a bundle without the data of its tables."""

    takes_local_token = True
    checks_query = True

    @anywhere(named_in_path)
    async def get(self, job_id: str) -> None:
        service = self.context.service
        bundle = await service.bundle(await service.get(job_id, self.scope))
        # the log alone may have megabytes
        body = await asyncio.to_thread(lambda: self._encode(bundle_response(bundle).body()))
        if not self.client_disconnected:
            self.finish(body)

    head = get


class BundledTableHandler(BaseHandler):
    """Sends the data of one table of a bundle."""

    takes_local_token = True
    checks_query = True

    @anywhere(named_in_path)
    async def get(self, job_id: str, table: str) -> None:
        service = self.context.service
        record = await service.get(job_id, self.scope)
        tables = (await service.bundle(record)).tables
        number = next((number for number, each in enumerate(tables) if each.alias == table), None)
        if number is None:
            raise NotFound(f"the job has no table {table[:80]!r}")
        data = service.open_bundled_table(record, number)
        if data is None:
            raise NotFound(f"nothing of table {table[:80]!r} is kept; `table_id` in the bundle is Metabase's id of it")
        with data:
            facts = FORMATS[tables[number].data_format]
            self.set_header("Content-Type", facts.content_type)
            self.set_header("Content-Length", data.size_bytes)
            self.set_header("Content-Disposition", f'attachment; filename="table{facts.endings[0]}"')
            if tables[number].compression is not None:
                self.set_header("Content-Encoding", str(tables[number].compression))
            if self.request.method == "HEAD":
                return
            try:
                async with aclosing(data.blocks()) as blocks:
                    async for block in blocks:
                        self.write(block)
                        await self.flush()
            except StreamClosedError:
                self.handle_disconnect()

    head = get
