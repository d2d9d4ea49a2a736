// An OPC UA server by node-opcua with a press: its force rises, its set point may be written.
const {OPCUAServer} = require("node-opcua-server");
const {Variant, DataType} = require("node-opcua-variant");
const {MessageSecurityMode, SecurityPolicy} = require("node-opcua-secure-channel");

(async () => {
    const server = new OPCUAServer({
        port: Number(process.argv[2]),
        hostname: "127.0.0.1",
        securityModes: [MessageSecurityMode.None],
        securityPolicies: [SecurityPolicy.None],
        buildInfo: {productName: "press"},
    });
    await server.initialize();
    const space = server.engine.addressSpace.getOwnNamespace();
    const folder = server.engine.addressSpace.rootFolder.objects;
    const press = space.addObject({organizedBy: folder, browseName: "Press", nodeId: "s=Press"});
    let force = 10;
    space.addVariable({
        componentOf: press,
        browseName: "Force",
        dataType: "Double",
        minimumSamplingInterval: 10,
        value: {get: () => new Variant({dataType: DataType.Double, value: (force += 0.5)})},
    });
    space.addVariable({
        componentOf: press,
        browseName: "Setpoint",
        nodeId: "s=Setpoint",
        dataType: "Double",
        value: new Variant({dataType: DataType.Double, value: 7}),
    });
    await server.start();
    console.log(`ready ${space.index}`);
})();
