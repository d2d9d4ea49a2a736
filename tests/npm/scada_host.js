// A Sparkplug host application: tells that it is there, and prints what nodes say to it, a line of JSON a message.
const mqtt = require("mqtt");
const sparkplug = require("sparkplug-payload").get("spBv1.0");

const [, , port, host] = process.argv;
const timestamp = Date.now();
const state = `spBv1.0/STATE/${host}`;
const told = (online) => JSON.stringify({online, timestamp});
const will = {topic: state, payload: told(false), qos: 1, retain: true};

const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, {will});
client.on("message", (topic, payload) => {
    const {seq, metrics} = sparkplug.decodePayload(payload);
    const plain = (_, value) => (value && value.low !== undefined ? Number(value) : value);
    console.log(JSON.stringify({topic, seq, metrics}, plain));
});
client.on("connect", () => client.subscribe("spBv1.0/plant/#", {qos: 1}, () => {
    client.publish(state, told(true), {qos: 1, retain: true}, () => console.log("ready"));
}));
