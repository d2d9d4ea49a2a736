// A Modbus TCP slave by modbus-serial: holding registers that keep what is written, input registers that are their address.
const {ServerTCP} = require("modbus-serial");

const kept = {}, coils = {};
const vector = {
    getInputRegister: (address) => address * 3,
    getHoldingRegister: (address) => kept[address] || 0,
    getCoil: (address) => Boolean(coils[address]),
    getDiscreteInput: (address) => address % 2 === 1,
    setRegister: (address, value) => { kept[address] = value; },
    setCoil: (address, value) => { coils[address] = value; },
};
const server = new ServerTCP(vector, {host: "127.0.0.1", port: Number(process.argv[2]), unitID: 1});
server.on("initialized", () => console.log("ready"));
