"""The few calls of AWS' query protocol that SkyPilot makes before it asks for an instance.

boto3 finds them by AWS_ENDPOINT_URL; SkyPilot's own AWS code runs unchanged. Everything else is
refused, and every call is in the event log.
"""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qsl

from tests.cell.fleet import EventLog

USER_ID = "AIDACELLCELLCELLCELL"
_IDENTITY = f"""<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<GetCallerIdentityResult><Arn>arn:aws:iam::000000000000:user/cell</Arn><UserId>{USER_ID}</UserId>
<Account>000000000000</Account></GetCallerIdentityResult>
<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></GetCallerIdentityResponse>"""
_IMAGES = """<DescribeImagesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
<requestId>0</requestId><imagesSet><item><imageId>{image}</imageId>
<imageState>available</imageState><rootDeviceName>/dev/sda1</rootDeviceName><blockDeviceMapping>
<item><deviceName>/dev/sda1</deviceName><ebs><volumeSize>45</volumeSize></ebs></item>
</blockDeviceMapping></item></imagesSet></DescribeImagesResponse>"""
_REFUSED = """<Response><Errors><Error><Code>UnsupportedOperation</Code>
<Message>the cell has no {action}</Message></Error></Errors><RequestID>0</RequestID></Response>"""


class FakeAws(ThreadingHTTPServer):
    """STS and EC2 in one."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], log: EventLog) -> None:
        super().__init__(address, _Handler)
        self.log = log
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeAws

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked = dict(parse_qsl(self.rfile.read(length).decode(errors="replace")))
        action = asked.get("Action", self.path)
        self.server.log.write("aws_called", detail={"action": action})
        match action:
            case "GetCallerIdentity":
                self._answer(200, _IDENTITY)
            case "DescribeImages":
                self._answer(200, _IMAGES.format(image=asked.get("ImageId.1", "ami-0")))
            case _:
                self._answer(400, _REFUSED.format(action=action))

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
