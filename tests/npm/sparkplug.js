// Sparkplug payloads by Eclipse's JavaScript library: `encode` prints one as base64, `decode` reads such and prints JSON.
const sparkplug = require("sparkplug-payload").get("spBv1.0");

const whole = (name, type, value) => ({name, type, value});
const payload = {
    timestamp: 1750000000123,
    seq: 7,
    metrics: [
        whole("int8", "Int8", -8),
        whole("int16", "Int16", -1600),
        whole("int32", "Int32", -320000),
        whole("int64", "Int64", -64000),
        whole("uint8", "UInt8", 200),
        whole("uint32", "UInt32", 4000000000),
        whole("uint64", "UInt64", 64000),
        whole("float", "Float", 1.5),
        whole("double", "Double", 20.25),
        whole("boolean", "Boolean", true),
        whole("string", "String", "text \u00e9"),
        whole("datetime", "DateTime", 1750000000000),
        {name: "null", type: "Int32", value: null},
        {
            name: "temperature",
            alias: 5,
            timestamp: 1750000000001,
            type: "Double",
            value: 61.5,
            properties: {engUnit: {type: "String", value: "\u00b0C"}, low: {type: "Double", value: -5.5}},
        },
        {
            name: "table",
            type: "DataSet",
            value: {numOfColumns: 2, types: ["Int32", "String"], columns: ["a", "b"], rows: [[1, "x"], [2, "y"]]},
        },
        {
            name: "motor",
            type: "Template",
            value: {
                isDefinition: false,
                templateRef: "Motor",
                version: "2",
                metrics: [{name: "rpm", type: "Int32", value: 1480}],
                parameters: [{name: "poles", type: "Int32", value: 4}],
            },
        },
    ],
};

const [, , verb, text] = process.argv;
if (verb === "encode") {
    console.log(Buffer.from(sparkplug.encodePayload(payload)).toString("base64"));
} else {
    const told = sparkplug.decodePayload(Buffer.from(text, "base64"));
    console.log(JSON.stringify(told, (_, value) => (value && value.low !== undefined ? Number(value) : value)));
}
