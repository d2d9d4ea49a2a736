// A Sparkplug edge node on MQTT.js, the client that Node-RED uses: births, data by alias, and a rebirth when it is asked.
const mqtt = require("mqtt");
const sparkplug = require("sparkplug-payload").get("spBv1.0");

const [, , port] = process.argv;
const topic = (verb) => `spBv1.0/plant/${verb}/edge`;
let seq = 0, value = 20;
const encode = (metrics) => Buffer.from(sparkplug.encodePayload({timestamp: Date.now(), metrics, seq: seq++ % 256}));
const bdSeq = {name: "bdSeq", type: "UInt64", value: 3};
const death = Buffer.from(sparkplug.encodePayload({timestamp: Date.now(), metrics: [bdSeq]}));

const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, {will: {topic: topic("NDEATH"), payload: death, qos: 1}});

function born() {
    seq = 0;
    const unit = {engUnit: {type: "String", value: "bar"}};
    client.publish(topic("NBIRTH"), encode([
        bdSeq,
        {name: "Node Control/Rebirth", type: "Boolean", value: false},
        {name: "pressure", alias: 1, type: "Double", value, properties: unit},
    ]));
}

client.on("message", (_, payload) => {
    const asked = sparkplug.decodePayload(payload).metrics.some((m) => m.name === "Node Control/Rebirth" && m.value);
    if (asked) {
        console.log("rebirth");
        born();
    }
});
client.on("connect", () => client.subscribe(topic("NCMD"), {qos: 1}, () => {
    console.log("ready");
    // Data before any birth, as of a node that began before this box did: it must be asked for one.
    setInterval(() => client.publish(topic("NDATA"), encode([{alias: 1, type: "Double", value: (value += 0.5)}])), 20);
}));
