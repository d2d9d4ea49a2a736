// A Sparkplug edge node that has a primary host: it is born when that is there, tells what it kept meanwhile as
// historical, and dies when the host leaves.
const mqtt = require("mqtt");
const sparkplug = require("sparkplug-payload").get("spBv1.0");

const [, , port, host] = process.argv;
const topic = (verb) => `spBv1.0/plant/${verb}/edge`;
let seq = 0, value = 20, known = -1, timer;
const encode = (metrics) => Buffer.from(sparkplug.encodePayload({timestamp: Date.now(), metrics, seq: seq++ % 256}));
const bdSeq = {name: "bdSeq", type: "UInt64", value: 3};
const death = Buffer.from(sparkplug.encodePayload({timestamp: Date.now(), metrics: [bdSeq]}));

const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, {will: {topic: topic("NDEATH"), payload: death, qos: 1}});

function born() {
    seq = 0;
    client.publish(topic("NBIRTH"), encode([bdSeq, {name: "pressure", alias: 1, type: "Double", value}]));
    client.publish(topic("NDATA"), encode([
        {alias: 1, type: "Double", value: 5, timestamp: Date.now() - 60000, isHistorical: true},
    ]));
    timer = setInterval(() => client.publish(topic("NDATA"), encode([{alias: 1, type: "Double", value: ++value}])), 20);
}

client.on("message", (_, payload) => {
    const state = JSON.parse(payload.toString());
    if (state.timestamp < known) return;
    known = state.timestamp;
    console.log(state.online ? "host is there" : "host is away");
    clearInterval(timer);
    if (state.online) born();
    else client.publish(topic("NDEATH"), death);
});
client.on("connect", () => client.subscribe(`spBv1.0/STATE/${host}`, {qos: 1}, () => console.log("ready")));
