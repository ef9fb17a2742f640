"""The few calls of AWS' query protocol that SkyPilot makes before it asks for an instance, and
those of its autodown on a node.

boto3 finds them by AWS_ENDPOINT_URL; SkyPilot's own AWS code runs unchanged. Everything else is
refused, and every call is in the event log.
"""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qsl

from tests.cell.fleet import EventLog, Fleet
from tests.cell.records import Instance, State, Terminate

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
_NODES = """<{action}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
<requestId>0</requestId>{items}</{action}Response>"""
_NODE = """<item><instanceId>{id}</instanceId><privateIpAddress>{ip}</privateIpAddress>
<{state_of}><code>{code}</code><name>{state}</name></{state_of}></item>"""
_CODES = {State.PENDING: 0, State.RUNNING: 16, State.TERMINATED: 48}
_VPCS = """<DescribeVpcsResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
<requestId>0</requestId><vpcSet><item><vpcId>vpc-0</vpcId><isDefault>true</isDefault></item></vpcSet>
</DescribeVpcsResponse>"""
_GROUPS = """<DescribeSecurityGroupsResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
<requestId>0</requestId><securityGroupInfo/></DescribeSecurityGroupsResponse>"""
_REFUSED = """<Response><Errors><Error><Code>UnsupportedOperation</Code>
<Message>the cell has no {action}</Message></Error></Errors><RequestID>0</RequestID></Response>"""


class FakeAws(ThreadingHTTPServer):
    """STS and EC2 in one; its instances are the fleet's."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], log: EventLog, fleet: Fleet) -> None:
        super().__init__(address, _Handler)
        self.log = log
        self.fleet = fleet
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
            case "DescribeInstances":
                items = _rows("instanceState", self._described(asked))
                wrapped = f"<item><instancesSet>{items}</instancesSet></item>" if items else ""
                found = f"<reservationSet>{wrapped}</reservationSet>"
                self._answer(200, _NODES.format(action=action, items=found))
            case "DescribeVpcs":
                self._answer(200, _VPCS)
            case "DescribeSecurityGroups":
                self._answer(200, _GROUPS)
            case "TerminateInstances":
                for name in _values(asked, "InstanceId"):
                    self.server.fleet.terminate(Terminate(cloud="aws", cluster=name))
                items = _rows("currentState", self._described(asked))
                found = f"<instancesSet>{items}</instancesSet>"
                self._answer(200, _NODES.format(action=action, items=found))
            case _:
                self._answer(400, _REFUSED.format(action=action))

    def _described(self, asked: dict[str, str]) -> list[Instance]:
        """Return the instances that are asked for: by id, by their cluster's tag, by state."""
        found = [one for one in self.server.fleet.instances() if one.cloud == "aws"]
        if names := _values(asked, "InstanceId"):
            found = [one for one in found if one.id in names]
        filters = _values(asked, "Filter", ".Name")
        for number, name in enumerate(filters, start=1):
            values = _values(asked, f"Filter.{number}.Value")
            match name:
                case "tag:ray-cluster-name":
                    found = [one for one in found if one.cluster in values]
                case "tag:ray-node-type":
                    found = [one for one in found if ("head" if one.head else "worker") in values]
                case "instance-state-name":
                    found = [one for one in found if one.state.value in values]
                case _:
                    raise AssertionError(f"the cell knows no filter {name}")
        return found

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


def _values(asked: dict[str, str], name: str, field: str = "") -> list[str]:
    """Return NAME.1FIELD, NAME.2FIELD and so on, as the query protocol writes lists."""
    found = []
    while (value := asked.get(f"{name}.{len(found) + 1}{field}")) is not None:
        found.append(value)
    return found


def _rows(state_of: str, instances: list[Instance]) -> str:
    return "".join(
        _NODE.format(
            id=one.id, ip=one.ip, state=one.state.value, code=_CODES[one.state], state_of=state_of
        )
        for one in instances
    )
